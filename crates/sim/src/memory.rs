//! The memory of one address space: mappings and page-table entries, both kept per page.
//!
//! A mapping (VMA) is a run of pages with the same identity and the same flags: so a changed flag splits it, as in the
//! kernel, and neighbours with one identity are one mapping.

use std::ops::Range;

/// What mapping a page belongs to, and how.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vma {
    /// Mappings that the kernel did not merge differ in it.
    pub id: u32,
    /// Registered with the userfaultfd of the address space.
    pub registered: bool,
    /// PROT_READ alone.
    pub readonly: bool,
    /// Executable, or shared: not as staging is.
    pub unlike: bool,
    /// mlocked.
    pub locked: bool,
    /// MADV_WIPEONFORK.
    pub wipe: bool,
    /// MADV_DONTFORK.
    pub dontfork: bool,
    /// MAP_GROWSDOWN: a touch below it makes it longer, and nobody is told.
    pub stack: bool,
}

/// A page-table entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pte {
    /// Nothing.
    None,
    /// MADV_GUARD_INSTALL's marker.
    Guard,
    /// The shared zero page.
    Zero,
    /// A page.
    Page {
        /// Its contents: the stamp of the last write.
        value: u64,
        /// Shared by fork and not written since: MOVE answers EBUSY, even when the other side is long dead.
        cow: bool,
        /// Freed by MADV_FREE and not written since: the kernel may take it at any time.
        lazy: bool,
    },
}

impl Pte {
    /// A page of the address space's own.
    pub fn page(value: u64) -> Self {
        Self::Page { value, cow: false, lazy: false }
    }
}

/// Mappings and page-table entries.
#[derive(Clone)]
pub struct Memory {
    /// Per page.
    pub vma: Vec<Option<Vma>>,
    /// Per page.
    pub pte: Vec<Pte>,
}

impl Memory {
    /// An empty address space of so many pages.
    pub fn new(pages: usize) -> Self {
        Self { vma: vec![None; pages], pte: vec![Pte::None; pages] }
    }

    /// The mapping that a page is in.
    pub fn mapping(&self, page: usize) -> Option<(Range<usize>, Vma)> {
        let vma = self.vma.get(page).copied().flatten()?;
        let same = |p: &usize| self.vma[*p] == Some(vma);
        let start = (0..page).rev().take_while(same).last().unwrap_or(page);
        let end = (page..self.vma.len()).take_while(same).last().map_or(page, |last| last + 1);
        Some((start..end, vma))
    }

    /// The first mapping that ends above a page.
    pub fn mapping_from(&self, page: usize) -> Option<(Range<usize>, Vma)> {
        (page..self.vma.len()).find(|&p| self.vma[p].is_some()).and_then(|p| self.mapping(p))
    }

    /// The mapping that holds all of a range.
    pub fn single(&self, range: &Range<usize>) -> Option<Vma> {
        let vma = self.vma.get(range.start).copied().flatten()?;
        (range.end <= self.vma.len() && range.clone().all(|p| self.vma[p] == Some(vma))).then_some(vma)
    }

    /// Whether a range is free of mappings.
    pub fn is_free(&self, range: &Range<usize>) -> bool {
        range.end <= self.vma.len() && range.clone().all(|p| self.vma[p].is_none())
    }

    /// Whether any mapping of a range is registered.
    pub fn any_registered(&self, range: &Range<usize>) -> bool {
        range.clone().any(|p| self.vma[p].is_some_and(|vma| vma.registered))
    }

    /// What a touch of an unmapped page adds to the stack above it, and that stack.
    pub fn stack_above(&self, page: usize) -> Option<(Range<usize>, Vma)> {
        let (stack, vma) = self.mapping_from(page)?;
        (vma.stack && stack.start > page).then_some((page..stack.start, vma))
    }

    /// Changes the flags of a range.
    pub fn alter(&mut self, range: Range<usize>, change: impl Fn(&mut Vma)) {
        self.vma[range].iter_mut().flatten().for_each(change);
    }

    /// Takes mappings away.
    pub fn clear(&mut self, range: Range<usize>) {
        self.vma[range.clone()].fill(None);
        self.pte[range].fill(Pte::None);
    }
}
