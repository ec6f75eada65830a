//! What the targets have in common under the engine: their bodies, and an allocator that counts.
//!
//! The bodies are in `fuzz/targets`, where the test `fuzz_corpus` of `tests/it` finds them as well. There
//! nothing is counted, because an allocator needs `unsafe`, which stands in this file alone.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[path = "../targets/bounds.rs"]
mod bounds;
#[path = "../targets/cursor.rs"]
pub mod cursor;
#[path = "../targets/json.rs"]
pub mod json;
#[path = "../targets/record.rs"]
pub mod record;
#[path = "../targets/same.rs"]
mod same;
#[path = "../targets/wire.rs"]
pub mod wire;

/// Bytes that are allocated, and the most that were since [`within`] last set it back.
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn add(bytes: usize) {
    PEAK.fetch_max(LIVE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came, and its answer back; only numbers are kept.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if new_size > layout.size() {
            // What grows may move, and is there twice for a moment.
            add(new_size);
            LIVE.fetch_sub(layout.size(), Relaxed);
        } else {
            LIVE.fetch_sub(layout.size() - new_size, Relaxed);
        }
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(at, layout, new_size) }
    }
}

/// Does `work` and panics if more than `bound` bytes beside those of before were live at any moment of it.
pub fn within<T>(what: &str, bound: usize, work: impl FnOnce() -> T) -> T {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let done = work();
    let taken = PEAK.load(Relaxed) - before;
    assert!(taken <= bound, "{what} took {taken} bytes of memory where {bound} are allowed");
    done
}
