//! Buffers for plaintext on its way to the kernel: reused, so that no fresh pages have to be faulted in, and wiped
//! when the volume locks.

use parking_lot::Mutex;
use std::sync::Arc;
use zeroize::Zeroize;

/// How many buffers are kept while nobody uses them.
const KEPT: usize = 4;
/// Room for the longest read. A buffer that had to grow would leave plaintext behind in the memory that it outgrew.
const CAPACITY: usize = super::MAX_REQUEST as usize;

/// The buffers of one mount.
#[derive(Default)]
pub struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

/// A buffer in use; given back when dropped.
pub struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffers {
    /// An empty buffer.
    pub fn take(self: &Arc<Self>) -> Buffer {
        Buffer { bytes: self.free.lock().pop().unwrap_or_else(|| Vec::with_capacity(CAPACITY)), home: Arc::clone(self) }
    }

    /// Wipes and frees all buffers that are not in use. While the gate is closed none is.
    pub fn wipe(&self) {
        for mut buffer in self.free.lock().drain(..) {
            // Also what lies behind its length, from longer reads before.
            buffer.resize(buffer.capacity(), 0);
            buffer.zeroize();
        }
    }
}

impl Buffer {
    /// The bytes.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        let mut free = self.home.free.lock();
        if free.len() < KEPT {
            bytes.clear();
            free.push(bytes);
        } else {
            drop(free);
            bytes.resize(bytes.capacity(), 0);
            bytes.zeroize();
        }
    }
}
