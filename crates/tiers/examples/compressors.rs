//! Compressors side by side on images of real programs' pages (made by `page_images`).
//!
//! ```text
//! cargo run --release -p vswap-tiers --example compressors -- FILE.pages...
//! ```
//!
//! Zero and same-filled pages are counted and left out: no compressor sees them. Each round runs every candidate over
//! all pages of a file; the figures are the median round and, in brackets, the least and the greatest. `B/page` is what
//! a kept page takes in the pool, header and alignment included; `refused` are pages that do not shrink to 3/4.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;

const PAGE: usize = 4096;
const ROUNDS: usize = 9;

/// Compresses into the buffer and returns the length; decompresses into the page.
trait Candidate {
    fn compress(&mut self, page: &[u8], out: &mut [u8]) -> usize;
    fn decompress(&mut self, bytes: &[u8], page: &mut [u8]);
}

struct Lz4Flex(lz4_flex::block::CompressTable);

impl Candidate for Lz4Flex {
    fn compress(&mut self, page: &[u8], out: &mut [u8]) -> usize {
        lz4_flex::block::compress_into_with_table(page, out, &mut self.0).expect("room")
    }

    fn decompress(&mut self, bytes: &[u8], page: &mut [u8]) {
        assert_eq!(lz4_flex::block::decompress_into(bytes, page).expect("valid"), PAGE);
    }
}

struct Lz4FlexUnsafe(lz4_flex_unsafe::block::CompressTable);

impl Candidate for Lz4FlexUnsafe {
    fn compress(&mut self, page: &[u8], out: &mut [u8]) -> usize {
        lz4_flex_unsafe::block::compress_into_with_table(page, out, &mut self.0).expect("room")
    }

    fn decompress(&mut self, bytes: &[u8], page: &mut [u8]) {
        assert_eq!(lz4_flex_unsafe::block::decompress_into(bytes, page).expect("valid"), PAGE);
    }
}

struct Lz4C(i32);

impl Candidate for Lz4C {
    fn compress(&mut self, page: &[u8], out: &mut [u8]) -> usize {
        let mode = lz4::block::CompressionMode::FAST(self.0);
        lz4::block::compress_to_buffer(page, Some(mode), false, out).expect("room")
    }

    fn decompress(&mut self, bytes: &[u8], page: &mut [u8]) {
        assert_eq!(lz4::block::decompress_to_buffer(bytes, Some(PAGE as i32), page).expect("valid"), PAGE);
    }
}

struct Snappy(snap::raw::Encoder, snap::raw::Decoder);

impl Candidate for Snappy {
    fn compress(&mut self, page: &[u8], out: &mut [u8]) -> usize {
        self.0.compress(page, out).expect("room")
    }

    fn decompress(&mut self, bytes: &[u8], page: &mut [u8]) {
        assert_eq!(self.1.decompress(bytes, page).expect("valid"), PAGE);
    }
}

struct Zstd(zstd::bulk::Compressor<'static>, zstd::bulk::Decompressor<'static>);

impl Candidate for Zstd {
    fn compress(&mut self, page: &[u8], out: &mut [u8]) -> usize {
        self.0.compress_to_buffer(page, out).expect("room")
    }

    fn decompress(&mut self, bytes: &[u8], page: &mut [u8]) {
        assert_eq!(self.1.decompress_to_buffer(bytes, page).expect("valid"), PAGE);
    }
}

/// What a round of one candidate took, in ns a page.
#[derive(Default)]
struct Figures {
    compress: Vec<f64>,
    decompress: Vec<f64>,
    lengths: Vec<usize>,
}

fn main() {
    let files: Vec<_> = std::env::args().skip(1).collect();
    assert!(!files.is_empty(), "usage: compressors FILE.pages...");
    for file in files {
        let bytes = std::fs::read(&file).expect("readable");
        let all: Vec<&[u8]> = bytes.chunks_exact(PAGE).collect();
        let pages: Vec<&[u8]> = all.iter().copied().filter(|p| p[8..] != p[..PAGE - 8]).collect();
        println!("\n{file}: {} pages, {} of them filled with one word", all.len(), all.len() - pages.len());
        measure(&pages);
    }
}

fn measure(pages: &[&[u8]]) {
    let zstd = |level| {
        let compressor = zstd::bulk::Compressor::new(level).expect("a level");
        Box::new(Zstd(compressor, zstd::bulk::Decompressor::new().expect("memory")))
    };
    let mut candidates: Vec<(&str, Box<dyn Candidate>)> = vec![
        ("lz4_flex, safe", Box::new(Lz4Flex(Default::default()))),
        ("lz4_flex, unsafe", Box::new(Lz4FlexUnsafe(Default::default()))),
        ("lz4 (C)", Box::new(Lz4C(1))),
        ("lz4 (C), fast 4", Box::new(Lz4C(4))),
        ("snap", Box::new(Snappy(snap::raw::Encoder::new(), snap::raw::Decoder::new()))),
        ("zstd -1", zstd(-1)),
        ("zstd 1", zstd(1)),
    ];
    let mut figures: Vec<Figures> = candidates.iter().map(|_| Figures::default()).collect();
    let mut out = vec![0u8; pages.len() * 2 * PAGE];
    let mut page = [0; PAGE];
    for _ in 0..ROUNDS {
        for ((_, candidate), figures) in candidates.iter_mut().zip(&mut figures) {
            let ns = |since: Instant| since.elapsed().as_nanos() as f64 / pages.len() as f64;
            let start = Instant::now();
            let outs = out.chunks_exact_mut(2 * PAGE);
            figures.lengths =
                pages.iter().zip(outs).map(|(page, out)| candidate.compress(page, out)).collect();
            figures.compress.push(ns(start));
            let start = Instant::now();
            for (out, len) in out.chunks_exact(2 * PAGE).zip(&figures.lengths) {
                candidate.decompress(&out[..*len], &mut page);
                black_box(&page);
            }
            figures.decompress.push(ns(start));
            for ((out, len), original) in
                out.chunks_exact(2 * PAGE).zip(&figures.lengths).zip(pages).step_by(101)
            {
                candidate.decompress(&out[..*len], &mut page);
                assert!(page[..] == **original, "a page came back changed");
            }
        }
    }
    println!(
        "{:<18} {:>28} {:>28} {:>8} {:>8}",
        "", "compress ns/page", "decompress ns/page", "B/page", "refused"
    );
    for ((name, _), f) in candidates.iter().zip(&mut figures) {
        let kept: Vec<usize> = f.lengths.iter().copied().filter(|l| *l <= PAGE * 3 / 4).collect();
        let bytes: usize = kept.iter().map(|l| 8 + l.next_multiple_of(8)).sum();
        println!(
            "{name:<18} {:>28} {:>28} {:>8} {:>7.1}%",
            median(&mut f.compress),
            median(&mut f.decompress),
            bytes / kept.len().max(1),
            100.0 * (1.0 - kept.len() as f64 / pages.len() as f64)
        );
    }
}

fn median(rounds: &mut [f64]) -> String {
    rounds.sort_unstable_by(f64::total_cmp);
    format!("{:.0} [{:.0} to {:.0}]", rounds[rounds.len() / 2], rounds[0], rounds[rounds.len() - 1])
}
