//! Unix SEQPACKET sockets that keep message boundaries and carry file descriptors.
//!
//! Owner: the pager, one connection per agent. The peer is not trusted: what it sends has bounds here, and descriptors that arrive are
//! owned (closed) whatever happens.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::Errno as RawErrno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// File descriptors in one message at most; a message with more is refused on both sides.
pub const FDS_MAX: usize = 8;

/// A listening socket with a path. The path is not removed when it is dropped.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Listens at `path`, which must not exist, with the given permission bits whatever the umask. There is no moment at which
    /// it has more of them.
    ///
    /// # Errors
    ///
    /// `EADDRINUSE`: the path exists; `ENAMETOOLONG`: it has more than 107 bytes; those of the directory.
    pub fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        let mode = Mode::from_bits_truncate(mode);
        let socket = seqpacket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        // Before bind it sets an upper bound for the file that bind makes; the umask still applies, hence the second.
        rustix::fs::fchmod(&socket, mode)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::fs::chmod(path, mode)?;
        rustix::net::listen(&socket, 128)?;
        Ok(Self(socket))
    }

    /// Accepts a connection, itself non-blocking; `None` if nobody waits.
    ///
    /// # Errors
    ///
    /// `EMFILE` and the like.
    pub fn accept_nonblocking(&self) -> io::Result<Option<Conn>> {
        loop {
            return match rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => Ok(Some(Conn(socket))),
                Err(RawErrno::AGAIN) => Ok(None),
                // The peer gave up, or a signal came: look for the next one.
                Err(RawErrno::CONNABORTED | RawErrno::INTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Who is at the other end, as the kernel recorded it when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id in our pid namespace, 0 if it has none there.
    pub pid: u32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Conn(OwnedFd);

impl Conn {
    /// Connects to a [`Listener`]; the connection blocks. Where many wait to be accepted it waits for its turn, at
    /// most `patience` long.
    ///
    /// # Errors
    ///
    /// `ECONNREFUSED`, `ENOENT`, `EACCES`; `WouldBlock`: its turn did not come.
    pub fn connect(path: &Path, patience: Duration) -> io::Result<Self> {
        let socket = seqpacket(SocketFlags::CLOEXEC)?;
        set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        let address = SocketAddrUnix::new(path)?;
        // With a time limit the kernel does not go on by itself after a stop.
        rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address))?;
        set_socket_timeout(&socket, Timeout::Send, None)?;
        Ok(Self(socket))
    }

    /// Makes calls on this end fail with `WouldBlock` instead of waiting, or wait again.
    ///
    /// # Errors
    ///
    /// None that a live descriptor gives.
    pub fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.0, nonblocking)?)
    }

    /// Sends one message, whole or not at all. A vanished peer gives `EPIPE`, never a signal.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: an empty message (it would look like the end) or more than [`FDS_MAX`] descriptors;
    /// `WouldBlock`: no room (non-blocking); `EMSGSIZE`: larger than the socket's buffer; `EPIPE`, `ECONNRESET`.
    pub fn send(&self, message: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if message.is_empty() || fds.len() > FDS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        loop {
            match rustix::net::sendmsg(&self.0, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)
            {
                Ok(sent) if sent == message.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(RawErrno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Receives one message into `buffer`: its length, and the descriptors that came with it (close-on-exec). Length 0 is the
    /// end: the peer has closed.
    ///
    /// # Errors
    ///
    /// `InvalidData`: the message is longer than `buffer` or has more than [`FDS_MAX`] descriptors (it is consumed
    /// and its descriptors are closed); `WouldBlock` (non-blocking); `ECONNRESET`.
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let slices = &mut [IoSliceMut::new(buffer)];
            match rustix::net::recvmsg(&self.0, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => break received,
                Err(RawErrno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        };
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(arrived) = message {
                fds.extend(arrived);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message longer than agreed"));
        }
        Ok((received.bytes, fds))
    }

    /// The process that connected (or made the pair).
    ///
    /// # Errors
    ///
    /// None that a live socket gives.
    pub fn peer_cred(&self) -> io::Result<Credentials> {
        let peer = socket_peercred(self.0.as_fd())?;
        Ok(peer)
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Conn {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Conn> for OwnedFd {
    fn from(conn: Conn) -> Self {
        conn.0
    }
}

/// A connected pair, both ends blocking and close-on-exec.
///
/// # Errors
///
/// `EMFILE` and the like.
pub fn socketpair() -> io::Result<(Conn, Conn)> {
    let (one, other) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Conn(one), Conn(other)))
}

fn seqpacket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// `SO_PEERCRED` by hand: the pid may be 0 (a peer outside our pid namespace), which `rustix`'s type cannot hold.
fn socket_peercred(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    use std::os::fd::AsRawFd;
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `peer` has `length` writable bytes, plain integers; `length` is written back.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Credentials { pid: u32::try_from(peer.pid).unwrap_or(0), uid: peer.uid, gid: peer.gid })
}
