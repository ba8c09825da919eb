//! The other side: a kernel of one address space that answers as scripted.

use super::*;

/// A kernel of one address space: what is registered and present, and whether a change is being counted.
#[derive(Default)]
pub(super) struct Kernel {
    pub(super) mappings: Vec<Range<u64>>,
    pub(super) registered: RangeSet,
    pub(super) present: HashMap<u64, u64>,
    pub(super) wiped: RangeSet,
    pub(super) changing: bool,
    pub(super) next_slot: u64,
    pub(super) contents: HashMap<SlotId, u64>,
    pub(super) refs: HashMap<SlotId, i64>,
    pub(super) log: Vec<Command>,
    pub(super) children: Vec<(ChildKey, AddressSpace)>,
    pub(super) stops: Vec<String>,
    pub(super) closed: Vec<ChildKey>,
    pub(super) gone: Vec<Range<u64>>,
}

impl Kernel {
    pub(super) fn execute(&mut self, command: Command) -> Answer {
        self.log.push(command.clone());
        match command {
            Command::Execute(..) => Answer::Done,
            Command::WipedOnFork(range) => Answer::Wiped(self.wiped.overlaps(&range).collect()),
            Command::Mapping(at) => Answer::Mapping(
                self.mappings
                    .iter()
                    .filter(|m| m.end > at)
                    .min_by_key(|m| m.start)
                    .map(|m| Mapping { range: m.clone(), evictable: true }),
            ),
            Command::Register(range) => {
                for mapping in &self.mappings {
                    if mapping.start < range.end && range.start < mapping.end {
                        self.registered.insert(mapping.start.max(range.start)..mapping.end.min(range.end));
                    }
                }
                Answer::Done
            }
            Command::Scan(range, most) => {
                let mut pages: Vec<_> = self.present.keys().copied().filter(|a| range.contains(a)).collect();
                pages.sort_unstable();
                pages.truncate(most as usize);
                let next = pages.last().map_or(range.end, |last| last + PAGE);
                Answer::Scanned(pages.into_iter().map(|a| a..a + PAGE).collect(), next)
            }
            _ if self.changing => match command {
                Command::Copy { .. } | Command::Zero { .. } => Answer::Installed(0, Stop::Changing),
                Command::Move(_) => Answer::Moved(Vec::new(), true),
                _ => Answer::Changing,
            },
            Command::Probe => Answer::Done,
            Command::ProbePage(addr) => {
                if self.registered.contains(addr) {
                    Answer::Done
                } else {
                    Answer::Refused
                }
            }
            Command::Copy { addr, slots, .. } => {
                for (i, slot) in slots.iter().enumerate() {
                    let at = addr + i as u64 * PAGE;
                    assert!(self.refs[slot] > 0, "a slot is read that nobody holds");
                    if !self.registered.contains(at) {
                        return Answer::Installed(i as u64, Stop::Missing);
                    }
                    if self.present.contains_key(&at) {
                        return Answer::Installed(i as u64, Stop::Exists);
                    }
                    self.present.insert(at, self.contents[slot]);
                }
                Answer::Installed(slots.len() as u64, Stop::Complete)
            }
            Command::Zero { addr, pages, .. } => {
                for i in 0..pages {
                    let at = addr + i * PAGE;
                    if !self.registered.contains(at) {
                        return Answer::Installed(i, Stop::Missing);
                    }
                    if self.present.contains_key(&at) {
                        return Answer::Installed(i, Stop::Exists);
                    }
                    self.present.insert(at, 0);
                }
                Answer::Installed(pages, Stop::Complete)
            }
            Command::Move(runs) => {
                let mut moved = Vec::new();
                for addr in runs.into_iter().flat_map(|run| run.step_by(PAGE as usize)) {
                    assert!(self.registered.contains(addr), "moved out of an unregistered mapping");
                    let Some(value) = self.present.remove(&addr) else { continue };
                    self.next_slot += 1;
                    let slot = SlotId::new(self.next_slot).unwrap();
                    self.contents.insert(slot, value);
                    self.refs.insert(slot, 1);
                    moved.push((addr, slot));
                }
                Answer::Moved(moved, false)
            }
        }
    }

    pub(super) fn run(&mut self, space: &mut AddressSpace) {
        loop {
            self.effects(space);
            let Some(command) = space.next_command() else { break };
            let answer = self.execute(command);
            space.answer(answer);
        }
        self.effects(space);
    }

    pub(super) fn effects(&mut self, space: &mut AddressSpace) {
        while let Some(effect) = space.effect() {
            match effect {
                Effect::Free(slots, _) => slots.iter().for_each(|s| *self.refs.get_mut(s).unwrap() -= 1),
                Effect::Dup(slots) => slots.iter().for_each(|s| *self.refs.get_mut(s).unwrap() += 1),
                Effect::Forked(key, child) => self.children.push((key, *child)),
                Effect::Closed(keys, gone) => {
                    self.closed.extend(keys);
                    self.gone.extend(gone);
                }
                Effect::FailStop(why) => self.stops.push(why),
                Effect::Served(_) | Effect::Wake(_) => {}
            }
        }
        assert!(self.refs.values().all(|&n| n >= 0), "a slot was freed twice");
    }

    pub(super) fn held(&self) -> i64 {
        self.refs.values().sum()
    }
}
