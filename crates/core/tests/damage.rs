//! What is damaged is noticed, named, and left as it is; the rest goes on.
#![cfg(not(loom))]

mod common;

use common::world::*;
use vswap_core::{Damage, Place, SlotId, TierId};

#[test]
fn a_slot_freed_twice_is_named_and_the_others_stay() {
    for shared in [false, true] {
        let w = world();
        let (slot, other) = (w.in_pool(3), w.in_pool(8));
        w.space.free_n(&[slot]);
        assert_eq!(w.space.damage(), None);
        if shared {
            w.space.dup_n(&[slot, other]);
        } else {
            w.space.free_n(&[slot, other]);
        }
        assert_eq!(w.space.damage(), Some(Damage::Unreferenced { slot }));
        assert!(w.space.damage().expect("just seen").to_string().contains(&slot.get().to_string()));
        assert_eq!(w.space.references(other), if shared { 2 } else { 0 });
        w.audit();
    }
}

#[test]
fn a_slot_that_never_was_is_damage() {
    let w = world();
    let held = w.in_pool(3);
    let slot = SlotId::new(1 << 30).expect("a slot");
    w.space.free_n(&[slot, held]);
    w.space.dup_n(&[slot]);
    assert_eq!(w.space.damage(), Some(Damage::Unreferenced { slot }));
    assert_eq!(w.space.references(held), 0);
}

#[test]
fn an_object_that_its_place_does_not_know_is_damage_when_it_is_released() {
    let w = world();
    let (pooled, filed) = (w.in_pool(3), w.in_file());
    for (tier, slot, place) in [(&w.file, filed, Place::Tier(TierId(0))), (&w.pool, pooled, Place::Pool)] {
        let location = w.location(tier, slot);
        tier.lose_all_objects();
        w.space.free_n(&[slot]);
        let first = Damage::Misplaced { slot: filed, place: Place::Tier(TierId(0)), location };
        if slot == filed {
            assert_eq!(w.space.damage(), Some(first));
            assert!(first.to_string().contains(&place.to_string()));
        }
        assert_eq!(w.space.damage().map(|damage| damage.slot()), Some(filed), "the first is remembered");
        assert_eq!(w.space.references(slot), 0);
    }
    w.assert_empty();
}
