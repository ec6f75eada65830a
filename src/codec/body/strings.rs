//! Texts that a body holds already: what the writer looks up before it writes one again.

/// Entries of the table. What no longer fits is forgotten and written again: a document of any size costs no more.
const SLOTS: usize = 1024;
/// Places in which a text may stand.
const PROBES: usize = 4;

/// A text that was written.
#[derive(Clone, Copy, Default)]
struct Slot {
    /// High half of its hash, and its bytes.
    text: u64,
    /// The document it belongs to, so that nothing needs clearing between two.
    document: u32,
    /// Bytes from the body's end to its tag, with the tag.
    place: u32,
}

/// The texts of one document, in a table of fixed size.
pub(super) struct Strings {
    slots: Box<[Slot; SLOTS]>,
    document: u32,
}

/// What a look-up gives.
pub(super) enum Looked {
    /// It was written at this place; the slot may be moved to a nearer one.
    Stands { place: usize, slot: usize },
    /// It was not, and may be noted in this slot.
    Free { slot: usize },
}

impl Strings {
    pub(super) fn new() -> Self {
        Self { slots: Box::new([Slot::default(); SLOTS]), document: 0 }
    }

    /// Forgets everything.
    pub(super) fn start(&mut self) {
        self.document = self.document.wrapping_add(1);
        if self.document == 0 {
            self.slots.fill(Slot::default());
            self.document = 1;
        }
    }

    /// Looks a text up. `same` compares it with what was written at a place.
    #[inline]
    pub(super) fn look(&self, hash: u64, length: usize, same: impl Fn(usize) -> bool) -> Looked {
        let (first, looked) = (hash as usize % SLOTS, text(hash, length));
        for probe in 0..PROBES {
            let slot = (first + probe) % SLOTS;
            let Slot { text, document, place } = self.slots[slot];
            if document != self.document {
                return Looked::Free { slot };
            }
            if text == looked && same(place as usize) {
                return Looked::Stands { place: place as usize, slot };
            }
        }
        Looked::Free { slot: first }
    }

    /// Notes a text in a slot that a look-up gave.
    #[inline]
    pub(super) fn note(&mut self, slot: usize, hash: u64, length: usize, place: usize) {
        self.slots[slot] = Slot { text: text(hash, length), document: self.document, place: place as u32 };
    }
}

fn text(hash: u64, length: usize) -> u64 {
    hash & !0xffff_ffff | u64::from(length as u32)
}
