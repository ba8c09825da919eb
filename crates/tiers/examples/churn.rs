//! What the cleaner costs against what it saves: objects moved for each object stored, by the share of waste that is
//! allowed, for ways to choose and to place, under replacement of objects at random.
//!
//! ```text
//! cargo run --release -p vswap-tiers --example churn
//! ```
//!
//! A pool of 24,000 live objects of 0.2 to 2.9 KiB (32 MiB); each step releases one and stores another for the same slot,
//! `uniform`ly or by `zipf` (exponent 0.99, hot slots scattered); the cleaner is called every 64 steps. After a warm-up
//! of two turnovers, four are counted. `worst` is the greatest waste seen after a call.
#![allow(missing_docs)]

use parking_lot::Mutex;
use std::time::{Duration, Instant};
use vswap_core::{Location, Owner, PAGE_SIZE, Page, Relocated, SlotId, Tier};
use vswap_tiers::{Choice, Cleaning, Pool};

const SLOTS: usize = 24_000;

struct Slots(Mutex<Vec<Option<Location>>>);

impl Owner for Slots {
    fn relocate(&self, slot: SlotId, old: Location, new: Location) -> Relocated {
        let word = &mut self.0.lock()[slot.get() as usize - 1];
        if *word != Some(old) {
            return Relocated::Gone;
        }
        *word = Some(new);
        Relocated::Moved
    }
}

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Draws slots by weights.
struct Draw(Vec<f64>);

impl Draw {
    fn new(weight: impl Fn(usize) -> f64) -> Self {
        let mut sum = 0.0;
        Self(
            (0..SLOTS)
                .map(|i| {
                    sum += weight(i);
                    sum
                })
                .collect(),
        )
    }

    fn slot(&self, rng: &mut Rng) -> usize {
        let at = rng.unit() * self.0[SLOTS - 1];
        self.0.partition_point(|sum| *sum <= at).min(SLOTS - 1)
    }
}

fn main() {
    let mut rng = Rng(0x1234_5678_9abc_def1);
    let pages: Vec<Page> = (0..64)
        .map(|i| {
            let mut page = [0; PAGE_SIZE];
            page.as_chunks_mut::<8>()
                .0
                .iter_mut()
                .take(20 + i * 5)
                .for_each(|w| *w = rng.next().to_le_bytes());
            page
        })
        .collect();
    let mut ranks: Vec<usize> = (1..=SLOTS).collect();
    (1..SLOTS).rev().for_each(|i| ranks.swap(i, rng.next() as usize % (i + 1)));
    let draws = [("uniform", Draw::new(|_| 1.0)), ("zipf", Draw::new(|i| (ranks[i] as f64).powf(-0.99)))];
    let ways = [
        ("greedy, mixed", Choice::Greedy, false),
        ("greedy, by age", Choice::Greedy, true),
        ("cost-benefit, mixed", Choice::CostBenefit, false),
        ("cost-benefit, by age", Choice::CostBenefit, true),
    ];
    println!("moved for each store");
    print!("{:<8} {:<22}", "", "");
    let caps = [0.10, 0.15, 0.20, 0.30];
    caps.iter().for_each(|cap| print!(" {:>17}", format!("waste {:.0} %", cap * 100.0)));
    println!("\n{:<31} {}", "", " moved worst ns/mv".repeat(caps.len()));
    for (name, draw) in &draws {
        for (way, choice, by_age) in ways {
            print!("{name:<8} {way:<22}");
            for waste_max in caps {
                let (moved, worst, ns) = run(Cleaning { waste_max, choice, by_age }, draw, &pages, &mut rng);
                print!(" {moved:>6.2} {:>4.0}% {ns:>5.0}", worst * 100.0);
            }
            println!();
        }
    }
}

/// Moves for each store, greatest waste, and ns for each move.
fn run(cleaning: Cleaning, draw: &Draw, pages: &[Page], rng: &mut Rng) -> (f64, f64, f64) {
    let pool = Pool::with_cleaning(1 << 30, cleaning);
    let slots = Slots(Mutex::new(vec![None; SLOTS]));
    let mut out = Vec::new();
    let mut replace = |i: usize, rng: &mut Rng| {
        let slot = SlotId::new(i as u64 + 1).expect("a slot");
        if let Some(at) = slots.0.lock()[i].take() {
            pool.release(slot, at).expect("held");
        }
        out.clear();
        pool.store(&[(slot, &pages[rng.next() as usize % pages.len()])], &mut out);
        slots.0.lock()[i] = Some(out[0].expect("stored"));
    };
    (0..SLOTS).for_each(|i| replace(i, rng));
    let (mut moved, mut worst, mut time) = (0, 0.0f64, Duration::ZERO);
    for step in 0..6 * SLOTS {
        replace(draw.slot(rng), rng);
        if step % 64 == 63 {
            let start = Instant::now();
            let report = pool.clean(&slots, u64::MAX);
            if step >= 2 * SLOTS {
                time += start.elapsed();
                moved += report.moved;
                worst = worst.max(pool.waste());
            }
        }
    }
    (moved as f64 / (4 * SLOTS) as f64, worst, time.as_nanos() as f64 / moved as f64)
}
