//! The socket to the pager: connecting, one message per packet, descriptors along with the first.

use vswap_wire::{Buffer, Config, SOCKET_PATH_MAX, buffer};

use crate::system::{Descriptor, Errno, O_CLOEXEC, call, nr, restart};

const AF_UNIX: u16 = 1;
const SOCK_SEQPACKET: usize = 5;
const SOL_SOCKET: i32 = 1;
const SCM_RIGHTS: i32 = 1;
const MSG_TRUNC: usize = 0x20;
const MSG_CTRUNC: u32 = 8;
const MSG_NOSIGNAL: usize = 0x4000;
const MSG_CMSG_CLOEXEC: usize = 0x4000_0000;

/// The most descriptors that travel with one packet.
const MAX_DESCRIPTORS: usize = 2;

#[repr(C)]
struct Address {
    family: u16,
    path: [u8; SOCKET_PATH_MAX + 1],
}

#[repr(C)]
struct Slice {
    base: usize,
    len: usize,
}

#[repr(C)]
struct MessageHeader {
    name: usize,
    name_len: u32,
    iov: usize,
    iov_len: usize,
    control: usize,
    control_len: usize,
    flags: u32,
}

#[repr(C, align(8))]
struct Control {
    len: usize,
    level: i32,
    kind: i32,
    descriptors: [i32; MAX_DESCRIPTORS],
}

const CONTROL_HEADER: usize = 16;

/// A connection that may still be given up.
pub(crate) struct Connection(Descriptor);

impl Connection {
    /// Connects to the pager of this run.
    pub(crate) fn open(config: &Config) -> Result<Connection, Errno> {
        let path = config.socket_path();
        let mut address = Address { family: AF_UNIX, path: [0; SOCKET_PATH_MAX + 1] };
        for (to, from) in address.path.iter_mut().zip(path) {
            *to = *from;
        }
        let length = size_of::<u16>() + path.len() + 1;
        // SAFETY: the address lives and has at least `length` bytes.
        unsafe {
            let family = usize::from(AF_UNIX);
            let socket = Descriptor::new(call(nr::SOCKET, &[family, SOCK_SEQPACKET | O_CLOEXEC, 0])?);
            restart(|| call(nr::CONNECT, &[socket.arg(), (&raw const address) as usize, length]))?;
            Ok(Connection(socket))
        }
    }

    /// The socket itself.
    pub(crate) fn socket(&self) -> &Descriptor {
        &self.0
    }

    /// Sends the first packet, with descriptors.
    pub(crate) fn send_hello(&self, packet: &[u8], descriptors: &[&Descriptor]) -> Result<(), Errno> {
        let mut control = Control { len: 0, level: SOL_SOCKET, kind: SCM_RIGHTS, descriptors: [-1; 2] };
        let mut count = 0;
        for (to, from) in control.descriptors.iter_mut().zip(descriptors) {
            *to = from.number();
            count += 1;
        }
        control.len = CONTROL_HEADER + count * size_of::<i32>();
        let iov = Slice { base: packet.as_ptr() as usize, len: packet.len() };
        let mut header = header(&iov);
        if count > 0 {
            header.control = (&raw const control) as usize;
            header.control_len = control.len.next_multiple_of(8);
        }
        // SAFETY: the header and all that it points to live and have the lengths given.
        restart(|| unsafe { call(nr::SENDMSG, &[self.0.arg(), (&raw const header) as usize, MSG_NOSIGNAL]) })
            .map(drop)
    }

    /// Receives the pager's first packet with the descriptor that may come along; an empty packet is end of file.
    pub(crate) fn receive_welcome(&self, into: &mut Buffer) -> Result<(usize, Option<Descriptor>), Errno> {
        let mut control = Control { len: 0, level: 0, kind: 0, descriptors: [-1; 2] };
        let iov = Slice { base: into.as_mut_ptr() as usize, len: into.len() };
        let mut header = header(&iov);
        let length = restart(|| {
            header.control = (&raw mut control) as usize;
            // Room for exactly one: the kernel closes what does not fit.
            header.control_len = CONTROL_HEADER + size_of::<i32>();
            // SAFETY: the header and all that it points to live, are ours to write and have the lengths given.
            unsafe { call(nr::RECVMSG, &[self.0.arg(), (&raw mut header) as usize, MSG_CMSG_CLOEXEC]) }
        })?;
        let came = header.control_len >= CONTROL_HEADER + size_of::<i32>()
            && control.len == CONTROL_HEADER + size_of::<i32>()
            && control.level == SOL_SOCKET
            && control.kind == SCM_RIGHTS;
        let descriptor = came.then(|| Descriptor::new(control.descriptors[0] as usize));
        if header.flags & (MSG_TRUNC as u32 | MSG_CTRUNC) != 0 {
            return Ok((0, None));
        }
        Ok((length, descriptor))
    }
}

fn header(iov: &Slice) -> MessageHeader {
    MessageHeader {
        name: 0,
        name_len: 0,
        iov: core::ptr::from_ref(iov) as usize,
        iov_len: 1,
        control: 0,
        control_len: 0,
        flags: 0,
    }
}

/// Sends a packet on the socket with this number.
pub(crate) fn send(socket: i32, packet: &[u8]) -> Result<(), Errno> {
    let args = [socket as usize, packet.as_ptr() as usize, packet.len(), MSG_NOSIGNAL];
    // SAFETY: the packet lives and has the length given.
    restart(|| unsafe { call(nr::SENDTO, &args) }).map(drop)
}

/// Receives a packet on the socket with this number, or nothing if it ended or the packet is no message of ours.
pub(crate) fn receive(socket: i32, into: &mut Buffer) -> Option<&[u8]> {
    let args = [socket as usize, into.as_mut_ptr() as usize, into.len(), MSG_TRUNC];
    // SAFETY: the buffer lives, is ours to write and has the length given.
    let length = restart(|| unsafe { call(nr::RECVFROM, &args) }).ok()?;
    if length == 0 { None } else { into.get(..length) }
}

/// A buffer for a packet.
pub(crate) const fn packet() -> Buffer {
    buffer()
}
