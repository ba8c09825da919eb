//! The pager's protocol: a state machine without I/O, one [`AddressSpace`] per userfaultfd context.
//!
//! The driver tells it what it read ([`Input`]), asks it for the next [`Command`], executes that and gives back the
//! [`Answer`]; what concerns slots and children comes out as [`Effect`]s. Nothing here knows a descriptor, a process
//! or a page's bytes, so that a simulated kernel can stand in for the real one.

mod close;
mod fork;
mod history;
mod let_go;
mod marks;
mod message;
mod ranges;
mod recall;
mod rules;
mod serve;
mod space;
mod streams;
mod sweep;
mod table;
#[cfg(test)]
mod tests;
mod waits;
mod window;

pub use message::{Answer, Call, ChildKey, Command, Effect, Fault, Input, Mapping, Mremap, Stop, Ticket};
pub use ranges::RangeSet;
#[doc(hidden)]
pub use rules::Rules;
pub use space::{AddressSpace, Counters};
pub use streams::MAX_WINDOW;
pub use sweep::BATCH_PAGES;
pub use waits::WaitsFor;
