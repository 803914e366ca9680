//! Datagrams that are sent later than their sender believes, and so in another order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::ffi::{c_int, c_long};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use libc::{iovec, msghdr};

/// Longest wait when nothing is to be sent.
const IDLE: Duration = Duration::from_secs(3600);

/// One datagram, or several that the kernel takes apart, with all that says where to.
pub struct Datagram {
    fd: c_int,
    flags: c_int,
    name: Vec<u8>,
    control: Vec<u64>,
    control_bytes: usize,
    data: Vec<u8>,
}

impl Datagram {
    /// Copies it.
    ///
    /// # Safety
    /// The message must be whole.
    pub unsafe fn copy(fd: c_int, message: &msghdr, flags: c_int) -> Datagram {
        let control_bytes = if message.msg_control.is_null() { 0 } else { message.msg_controllen };
        // In words, because the kernel wants it aligned.
        let mut control = vec![0u64; control_bytes.div_ceil(size_of::<u64>())];
        // SAFETY: as the caller promises; the copy has as much room.
        unsafe {
            let from = message.msg_control.cast::<u8>();
            if control_bytes > 0 {
                std::ptr::copy_nonoverlapping(from, control.as_mut_ptr().cast::<u8>(), control_bytes);
            }
            let name =
                std::slice::from_raw_parts(message.msg_name.cast::<u8>(), message.msg_namelen as usize);
            let data = super::gather(message.msg_iov, message.msg_iovlen);
            Datagram { fd, flags, name: name.to_vec(), control, control_bytes, data }
        }
    }

    /// What its sender is told: all of it was sent.
    pub fn length(&self) -> isize {
        self.data.len() as isize
    }

    fn send(&mut self) {
        let mut part = iovec { iov_base: self.data.as_mut_ptr().cast(), iov_len: self.data.len() };
        // SAFETY: all zero is a message of nothing to nobody.
        let mut message: msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = self.name.as_mut_ptr().cast();
        message.msg_namelen = self.name.len() as u32;
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        if self.control_bytes > 0 {
            message.msg_control = self.control.as_mut_ptr().cast();
            message.msg_controllen = self.control_bytes;
        }
        // SAFETY: everything that the message points to lives until the call is over. What it says does not
        // matter: a datagram may be lost.
        unsafe {
            let flags = c_long::from(self.flags);
            libc::syscall(libc::SYS_sendmsg, c_long::from(self.fd), std::ptr::from_ref(&message), flags);
        }
    }
}

/// Sends it after that time.
pub fn send(datagram: Datagram, after: Duration) {
    static QUEUE: OnceLock<Mutex<Sender<(Instant, Datagram)>>> = OnceLock::new();
    let queue = QUEUE.get_or_init(|| {
        let (sender, queue) = channel();
        std::thread::spawn(move || run(&queue));
        Mutex::new(sender)
    });
    if let Ok(queue) = queue.lock() {
        let _ = queue.send((Instant::now() + after, datagram));
    }
}

fn run(queue: &Receiver<(Instant, Datagram)>) {
    let mut order: BinaryHeap<Reverse<(Instant, u64)>> = BinaryHeap::new();
    let mut waiting: HashMap<u64, Datagram> = HashMap::new();
    for number in 0u64.. {
        let now = Instant::now();
        while let Some(Reverse((due, number))) = order.peek().copied()
            && due <= now
        {
            order.pop();
            if let Some(mut datagram) = waiting.remove(&number) {
                Datagram::send(&mut datagram);
            }
        }
        let next = order.peek().map_or(IDLE, |Reverse((due, _))| due.saturating_duration_since(now));
        match queue.recv_timeout(next) {
            Ok((due, datagram)) => {
                order.push(Reverse((due, number)));
                waiting.insert(number, datagram);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
