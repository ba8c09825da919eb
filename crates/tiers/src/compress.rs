//! How the pool makes a page smaller: LZ4 blocks by `lz4_flex`, in safe Rust at both ends.
//!
//! A decompressor reads bytes that may be rotten: it checks every bound against the caller's buffer and fails, and the
//! result must be exactly one page. The figures behind the choice are in the crate documentation.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};
use vswap_core::{PAGE_SIZE, Page};

/// A page that does not shrink to this many bytes is refused by the pool: three quarters of a page.
pub(crate) const KEEP_MAX: usize = PAGE_SIZE * 3 / 4;

/// A compressor's working memory, reused for the pages of a batch.
pub(crate) struct Compressor {
    table: CompressTable,
    out: Box<[u8; get_maximum_output_size(PAGE_SIZE)]>,
}

impl Compressor {
    pub(crate) fn new() -> Self {
        Self { table: CompressTable::small(), out: Box::new([0; get_maximum_output_size(PAGE_SIZE)]) }
    }

    /// The compressed page, or `None` if it does not shrink to [`KEEP_MAX`].
    pub(crate) fn compress(&mut self, page: &Page) -> Option<&[u8]> {
        let len = compress_into_with_table(page, &mut self.out[..], &mut self.table)
            .expect("the buffer has the size that lz4 asks for");
        (len <= KEEP_MAX).then(|| &self.out[..len])
    }
}

/// Fills `into` from `bytes`; `false` if they do not decompress to exactly one page.
pub(crate) fn decompress(bytes: &[u8], into: &mut Page) -> bool {
    matches!(decompress_into(bytes, into), Ok(PAGE_SIZE))
}

/// The word that the whole page repeats, if it is such a page.
pub(crate) fn filled_word(page: &Page) -> Option<u64> {
    let (words, _) = page.as_chunks::<8>();
    let first = words[0];
    // The last word first: a partly used page begins like a filled one, and is seldom so at its end.
    if words[words.len() - 1] != first || words.iter().any(|w| *w != first) {
        return None;
    }
    Some(u64::from_le_bytes(first))
}

/// Fills the page with `word`.
pub(crate) fn fill(word: u64, into: &mut Page) {
    into.as_chunks_mut::<8>().0.fill(word.to_le_bytes());
}
