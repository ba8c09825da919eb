//! How the pool makes a page smaller: Zstandard frames, level -1, by the reference library.
//!
//! At equal total memory what a page takes compressed decides how many have to be: every byte that the pool saves is a byte that
//! stays with the program. LZ4 is twice as fast and takes twice the room; the figures behind the choice are in the crate
//! documentation.
//!
//! A decompressor reads bytes that may be rotten: it checks every bound against the caller's buffer and fails, and the
//! result must be exactly one page.

use parking_lot::Mutex;
use vswap_core::{PAGE_SIZE, Page};
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, FrameFormat, compress_bound};

/// A page that does not shrink to this many bytes is refused by the pool: three quarters of a page.
pub(crate) const KEEP_MAX: usize = PAGE_SIZE * 3 / 4;
/// Where the library's levels trade ratio for speed.
const LEVEL: i32 = -1;

/// A compressor and room for its output.
pub(crate) struct Compressor {
    context: CCtx<'static>,
    out: Box<[u8]>,
}

impl Compressor {
    fn new() -> Option<Self> {
        let mut context = CCtx::try_create()?;
        context.set_parameter(CParameter::CompressionLevel(LEVEL)).ok()?;
        // 8 KiB: less of the program's cache, and for a page as good as the level's 32.
        context.set_parameter(CParameter::HashLog(11)).ok()?;
        // Five bytes less for each page: what it is and how long is known.
        context.set_parameter(CParameter::Format(FrameFormat::Magicless)).ok()?;
        context.set_parameter(CParameter::ContentSizeFlag(false)).ok()?;
        Some(Self { context, out: vec![0; compress_bound(PAGE_SIZE)].into() })
    }

    /// The compressed page, or `None` if it does not shrink to [`KEEP_MAX`].
    pub(crate) fn compress(&mut self, page: &Page) -> Option<&[u8]> {
        // It fails without memory for its tables, and the page is as if it did not shrink.
        let length = self.context.compress2(&mut self.out[..], page).ok()?;
        (length <= KEEP_MAX).then(|| &self.out[..length])
    }
}

/// Compressors and decompressors, lent to whoever needs one: they take memory, and threads are many.
#[derive(Default)]
pub(crate) struct Codec {
    compressors: Mutex<Vec<Compressor>>,
    decompressors: Mutex<Vec<DCtx<'static>>>,
}

impl Codec {
    /// Has `work` done with a compressor; `None` if there is no memory for one.
    pub(crate) fn with_compressor<T>(&self, work: impl FnOnce(&mut Compressor) -> T) -> Option<T> {
        let idle = self.compressors.lock().pop();
        let mut compressor = idle.or_else(Compressor::new)?;
        let done = work(&mut compressor);
        self.compressors.lock().push(compressor);
        Some(done)
    }

    /// Fills the page from `bytes`; `false` if they do not decompress to exactly one page.
    pub(crate) fn decompress(&self, bytes: &[u8], into: &mut Page) -> bool {
        let mut context = loop {
            let idle = self.decompressors.lock().pop();
            if let Some(context) = idle.or_else(decompressor) {
                break context;
            }
            // No memory for another: some other thread's comes back in microseconds.
            std::thread::yield_now();
        };
        let done = matches!(context.decompress(&mut into[..], bytes), Ok(PAGE_SIZE));
        self.decompressors.lock().push(context);
        done
    }
}

fn decompressor() -> Option<DCtx<'static>> {
    let mut context = DCtx::try_create()?;
    context.set_parameter(DParameter::Format(FrameFormat::Magicless)).ok()?;
    Some(context)
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
