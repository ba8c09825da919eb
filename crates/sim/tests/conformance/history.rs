//! The language of the histories: threads make calls, the pager reads messages and gives commands. Whoever asserts
//! something here asserts it of both kernels.

use std::ops::Range;

use vswap_sim::Setup;
use vswap_sim::bare::{Bare, CHILD, Call, Command, Said, There};

/// A process with a userfaultfd: simulated, or real.
pub(crate) trait Kernel {
    /// Lets a thread begin a call.
    fn start(&mut self, thread: usize, call: Call);
    /// The result of a thread's call, if it has returned.
    fn returned(&mut self, thread: usize) -> Option<i64>;
    /// What a read() of a process's descriptor says now; 1 is the forked child.
    fn message(&mut self, process: usize) -> Option<Said>;
    /// Executes a command on a process's descriptor: the pages done, and 0 or an errno.
    fn command(&mut self, process: usize, command: Command) -> (usize, i32);
    /// What is at a page, as pagemap tells.
    fn there(&mut self, page: usize) -> There;
    /// What PAGEMAP_SCAN finds as the pager asks, so many pages at most, and where it goes on.
    fn scan(&mut self, range: Range<usize>, most: usize) -> (Vec<Range<usize>>, usize);
    /// The mapping at a page, or the next one above, as PROCMAP_QUERY tells.
    fn mapping(&mut self, page: usize) -> Option<Range<usize>>;
    /// Waits until so many messages are queued, and reads none.
    fn queued(&mut self, messages: usize);
    /// Waits until a thread, whose change can be seen, sleeps until its event is read.
    fn asleep(&mut self, thread: usize);
    /// Kills the vfork child where it waits, and waits for its end.
    fn kill_vfork(&mut self);
    /// Lets time pass; gives up after too much of it.
    fn rest(&mut self);
}

impl dyn Kernel + '_ {
    /// Makes a call from beginning to end, reading what it says meanwhile.
    pub(crate) fn call(&mut self, call: Call) -> (i64, Vec<Said>) {
        self.start(0, call);
        self.finish(0)
    }

    /// Reads until a thread's call has returned, and what is left then.
    pub(crate) fn finish(&mut self, thread: usize) -> (i64, Vec<Said>) {
        let mut said = Vec::new();
        loop {
            if let Some(message) = self.message(0) {
                said.push(message);
            } else if let Some(result) = self.returned(thread) {
                said.extend(std::iter::from_fn(|| self.message(0)));
                return (result, said);
            } else {
                self.rest();
            }
        }
    }

    /// A call that says nothing.
    pub(crate) fn quietly(&mut self, call: Call) -> i64 {
        let text = format!("{call:?}");
        let (result, said) = self.call(call);
        assert_eq!(said, [], "{text} has nothing to say");
        result
    }

    /// The next message, which must come soon.
    pub(crate) fn due(&mut self, process: usize) -> Said {
        loop {
            if let Some(message) = self.message(process) {
                return message;
            }
            self.rest();
        }
    }

    /// Waits until a thread's call has returned.
    pub(crate) fn end(&mut self, thread: usize) -> i64 {
        loop {
            if let Some(result) = self.returned(thread) {
                return result;
            }
            self.rest();
        }
    }

    /// The forked child makes a call that says nothing.
    pub(crate) fn child(&mut self, call: Call) -> i64 {
        let text = format!("{call:?}");
        self.start(CHILD, call);
        let result = self.end(CHILD);
        assert_eq!(self.message(1), None, "{text} has nothing to say");
        result
    }

    /// Waits until something is at a page.
    pub(crate) fn appears(&mut self, page: usize) {
        while self.there(page) != There::Page {
            self.rest();
        }
    }

    /// Memory with contents: page number + 1000.
    pub(crate) fn filled(&mut self, range: Range<usize>) {
        self.quietly(Call::Map(range.clone()));
        for page in range {
            self.quietly(Call::Write(page, page as u64 + 1000));
        }
    }

    /// The same, registered.
    pub(crate) fn registered(&mut self, range: Range<usize>) {
        self.filled(range.clone());
        assert_eq!(self.command(0, Command::Register(range)), (0, 0));
    }

    /// Waits until no change is counted: a thread that was told may not have woken yet.
    pub(crate) fn quiet(&mut self) {
        while self.command(0, Command::Probe(0)).1 == libc::EAGAIN {
            self.rest();
        }
    }

    pub(crate) fn assert_registered(&mut self, range: Range<usize>, registered: bool) {
        for page in range {
            let errno = if registered { 0 } else { libc::ENOENT };
            assert_eq!(self.command(0, Command::Probe(page)), (0, errno), "page {page}");
        }
    }

    /// What a thread reads from a page, without a word of the userfaultfd.
    pub(crate) fn read(&mut self, page: usize) -> i64 {
        self.quietly(Call::Read(page))
    }

    /// A thread touches a page that must be missing and is given `value`.
    pub(crate) fn faults(&mut self, page: usize, value: u64) {
        self.start(2, Call::Read(page));
        assert_eq!(self.due(0), Said::Fault { page, write: false });
        assert_eq!(self.command(0, Command::Copy(page, vec![value])), (1, 0));
        assert_eq!(self.end(2), value as i64);
    }

    /// While the call of thread 0 waits for its event to be read, the count of changes refuses every guarded command.
    pub(crate) fn assert_counted(&mut self, spare: usize) {
        self.queued(1);
        assert_eq!(self.returned(0), None, "it waits until its event is read");
        for command in [
            Command::Copy(spare, vec![1]),
            Command::Zero(spare..spare + 1),
            Command::Probe(spare),
            Command::Move(spare..spare + 1, 0),
        ] {
            assert_eq!(self.command(0, command), (0, libc::EAGAIN));
        }
    }
}

/// The simulated kernel.
pub(crate) struct Simulated<'a>(Bare<'a>);

impl<'a> Simulated<'a> {
    pub(crate) fn new(setup: &'a Setup) -> Self {
        Self(Bare::new(setup))
    }
}

impl Kernel for Simulated<'_> {
    fn start(&mut self, thread: usize, call: Call) {
        self.0.start(thread, &call);
    }

    fn returned(&mut self, thread: usize) -> Option<i64> {
        self.0.returned(thread)
    }

    fn message(&mut self, process: usize) -> Option<Said> {
        self.0.message(process)
    }

    fn command(&mut self, process: usize, command: Command) -> (usize, i32) {
        self.0.command(process, &command)
    }

    fn there(&mut self, page: usize) -> There {
        self.0.there(page)
    }

    fn scan(&mut self, range: Range<usize>, most: usize) -> (Vec<Range<usize>>, usize) {
        self.0.scan(range, most)
    }

    fn mapping(&mut self, page: usize) -> Option<Range<usize>> {
        self.0.mapping(page)
    }

    fn queued(&mut self, messages: usize) {
        assert_eq!(self.0.queued(), messages);
    }

    fn asleep(&mut self, thread: usize) {
        assert!(self.0.sleeps(thread));
    }

    fn kill_vfork(&mut self) {
        self.0.kill_vfork();
    }

    fn rest(&mut self) {
        panic!("nothing more happens");
    }
}
