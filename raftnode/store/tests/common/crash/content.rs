//! The content of a file, of which copies are cheap: they share their pages until one is written.

use std::io;
use std::sync::Arc;

/// Bytes of a page.
const PAGE: usize = 4096;

#[derive(Clone, Default)]
pub struct Content {
    len: usize,
    /// A page that was never written is all zeros.
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
}

/// The parts of a range of bytes that lie in one page each: page, offset in it, length.
fn parts(offset: usize, len: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut at = offset;
    std::iter::from_fn(move || {
        let left = offset + len - at;
        let part = (at / PAGE, at % PAGE, left.min(PAGE - at % PAGE));
        at += part.2;
        (left > 0).then_some(part)
    })
}

impl Content {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn set_len(&mut self, len: usize) {
        let (old, end) = (self.len, len.next_multiple_of(PAGE));
        self.len = len;
        self.pages.resize(len.div_ceil(PAGE), None);
        if len < old {
            // What is cut off reads as zeros if the file grows again.
            for (page, from, count) in parts(len, end - len) {
                if let Some(Some(page)) = self.pages.get_mut(page) {
                    Arc::make_mut(page)[from..from + count].fill(0);
                }
            }
        }
    }

    pub fn write(&mut self, offset: usize, data: &[u8]) {
        if self.len < offset + data.len() {
            self.set_len(offset + data.len());
        }
        let mut data = data;
        for (page, from, count) in parts(offset, data.len()) {
            let page = self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE]));
            let (here, rest) = data.split_at(count);
            Arc::make_mut(page)[from..from + count].copy_from_slice(here);
            data = rest;
        }
    }

    pub fn read(&self, offset: usize, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        for (page, from, count) in parts(offset, out.len()) {
            let into = &mut out[done..done + count];
            match &self.pages[page] {
                Some(page) => into.copy_from_slice(&page[from..from + count]),
                None => into.fill(0),
            }
            done += count;
        }
        Ok(())
    }
}
