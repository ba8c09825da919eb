//! Fault-around: how many neighbours come along with a fault.
//!
//! One short memory per thread: a fault where the last window of the thread ended continues a stream and doubles its
//! window; any other fault starts anew with a single page. A fixed window makes random access thrash.

/// Most pages that come along with one fault.
pub const MAX_WINDOW: u64 = 32;
const THREADS: usize = 8;

#[derive(Clone, Copy, Default)]
struct Stream {
    tid: u32,
    next: u64,
    window: u64,
    age: u64,
}

/// The streams of the threads that fault most.
#[derive(Clone, Default)]
pub struct Streams {
    streams: [Stream; THREADS],
    clock: u64,
}

impl Streams {
    /// Pages to bring in for a fault of `tid` on page number `page`, the page included.
    pub fn window(&mut self, tid: u32, page: u64) -> u64 {
        self.clock += 1;
        let hit = self.streams.iter().position(|s| s.tid == tid && s.window > 0 && s.next == page);
        let at = hit.unwrap_or_else(|| {
            let oldest = self.streams.iter().enumerate().min_by_key(|(_, s)| s.age);
            oldest.map_or(0, |(index, _)| index)
        });
        let stream = &mut self.streams[at];
        stream.window = if hit.is_some() { (stream.window * 2).min(MAX_WINDOW) } else { 1 };
        stream.tid = tid;
        stream.age = self.clock;
        stream.next = page + stream.window;
        stream.window
    }

    /// The window came out shorter: the stream goes on at `next`.
    pub fn ended_at(&mut self, tid: u32, next: u64) {
        let clock = self.clock;
        if let Some(stream) = self.streams.iter_mut().find(|s| s.tid == tid && s.age == clock) {
            stream.next = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_gets_a_growing_window_and_a_random_one_does_not() {
        let mut streams = Streams::default();
        let mut page = 100;
        let mut faults = 0;
        while page < 1100 {
            page += streams.window(1, page);
            faults += 1;
        }
        assert!(faults < 1000 / 16, "{faults} faults for 1000 pages");
        let mut x = 7u64;
        for _ in 0..1000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            assert_eq!(streams.window(2, x >> 20), 1);
        }
    }

    #[test]
    fn two_threads_do_not_disturb_each_other() {
        let mut streams = Streams::default();
        let (mut a, mut b) = (0, 1 << 20);
        for _ in 0..10 {
            a += streams.window(1, a);
            b += streams.window(2, b);
        }
        assert!(a > 150 && b > (1 << 20) + 150);
    }
}
