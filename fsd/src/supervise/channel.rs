//! What supervisor and worker say to each other, over a pair of sockets that keep messages apart. When the
//! worker is gone, however that came, the supervisor reads the end; and then no thread of the worker can
//! answer the kernel any more, because they shared one table of descriptors.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::unix::AsyncFd;

/// Descriptors that one message may carry.
const DESCRIPTORS_MAX: usize = 2;
/// Bytes of the longest message.
const MESSAGE_MAX: usize = 16;

/// From the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Serve the mount whose device and journal come along; `resumed` if somebody served it before.
    Serve {
        /// Counts the workers of the mount.
        generation: u32,
        /// It is not new.
        resumed: bool,
    },
    /// Come to an end, and cut off whoever still uses the mount.
    End,
}

/// From the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The tree is there; notes are written and read in this format.
    Prepared {
        /// See [`fsd::handover::FORMAT`].
        format: u32,
    },
    /// The mount is usable.
    Serving {
        /// The kernel can be made to ask again what nobody answered.
        resends: bool,
    },
    /// The mount is off.
    Unmounted,
}

impl Order {
    fn encode(self) -> Vec<u8> {
        match self {
            Order::Serve { generation, resumed } => {
                let mut message = vec![b'S', u8::from(resumed)];
                message.extend_from_slice(&generation.to_le_bytes());
                message
            }
            Order::End => vec![b'E'],
        }
    }

    fn decode(message: &[u8]) -> Option<Order> {
        match message {
            [b'S', resumed, generation @ ..] => Some(Order::Serve {
                generation: u32::from_le_bytes(generation.try_into().ok()?),
                resumed: *resumed == 1,
            }),
            [b'E'] => Some(Order::End),
            _ => None,
        }
    }
}

impl Report {
    fn encode(self) -> Vec<u8> {
        match self {
            Report::Prepared { format } => {
                let mut message = vec![b'P'];
                message.extend_from_slice(&format.to_le_bytes());
                message
            }
            Report::Serving { resends } => vec![b'V', u8::from(resends)],
            Report::Unmounted => vec![b'U'],
        }
    }

    fn decode(message: &[u8]) -> Option<Report> {
        match message {
            [b'P', format @ ..] => {
                Some(Report::Prepared { format: u32::from_le_bytes(format.try_into().ok()?) })
            }
            [b'V', resends] => Some(Report::Serving { resends: *resends == 1 }),
            [b'U'] => Some(Report::Unmounted),
            _ => None,
        }
    }
}

/// One end.
#[derive(Debug)]
pub struct Channel(AsyncFd<OwnedFd>);

/// Both ends. Neither survives an `exec` unless it is said so.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

impl Channel {
    /// On one end.
    pub fn new(end: OwnedFd) -> io::Result<Channel> {
        rustix::io::ioctl_fionbio(&end, true)?;
        // SAFETY: an `OwnedFd` is the same open descriptor for as long as it lives.
        Ok(Channel(unsafe { AsyncFd::register(end)? }))
    }

    /// Says something to the worker.
    pub async fn order(&self, order: Order, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send(&order.encode(), descriptors).await
    }

    /// Says something to the supervisor.
    pub async fn report(&self, report: Report) -> io::Result<()> {
        self.send(&report.encode(), &[]).await
    }

    /// What the supervisor says next; `None` when it is gone.
    pub async fn next_order(&self) -> io::Result<Option<(Order, Vec<OwnedFd>)>> {
        let Some((message, descriptors)) = self.receive().await? else { return Ok(None) };
        let order = Order::decode(&message).ok_or_else(|| strange(&message))?;
        Ok(Some((order, descriptors)))
    }

    /// What the worker says next; `None` when it is gone.
    pub async fn next_report(&self) -> io::Result<Option<Report>> {
        let Some((message, _)) = self.receive().await? else { return Ok(None) };
        Report::decode(&message).ok_or_else(|| strange(&message)).map(Some)
    }

    async fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            let sent = ready.try_io(|end| {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
                    return Err(io::Error::from(io::ErrorKind::InvalidInput));
                }
                Ok(sendmsg(end.as_fd(), &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL)?)
            });
            if let Ok(result) = sent {
                return result.map(drop);
            }
        }
    }

    async fn receive(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.0.readable().await?;
            let received = ready.try_io(|end| {
                let mut message = [0; MESSAGE_MAX];
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
                let mut control = RecvAncillaryBuffer::new(&mut space);
                let mut parts = [IoSliceMut::new(&mut message)];
                let length = recvmsg(end.as_fd(), &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
                let mut descriptors = Vec::new();
                for part in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(some) = part {
                        descriptors.extend(some);
                    }
                }
                Ok((message[..length].to_vec(), descriptors))
            });
            match received {
                Err(_) => {}
                Ok(Ok((message, _))) if message.is_empty() => return Ok(None),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Ok(received) => return received.map(Some),
            }
        }
    }
}

fn strange(message: &[u8]) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a message that is none: {message:?}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn orders_reports_and_descriptors_arrive() {
        let (a, b) = pair().unwrap();
        let (supervisor, worker) = (Channel::new(a).unwrap(), Channel::new(b).unwrap());
        let file = std::fs::File::open("/dev/null").unwrap();
        let order = Order::Serve { generation: 70_000, resumed: true };
        supervisor.order(order, &[file.as_fd(), file.as_fd()]).await.unwrap();
        let (got, descriptors) = worker.next_order().await.unwrap().unwrap();
        assert_eq!((got, descriptors.len()), (order, 2));
        for report in [Report::Prepared { format: 3 }, Report::Serving { resends: true }, Report::Unmounted] {
            worker.report(report).await.unwrap();
            assert_eq!(supervisor.next_report().await.unwrap(), Some(report));
        }
        drop(worker);
        assert_eq!(supervisor.next_report().await.unwrap(), None);
    }
}
