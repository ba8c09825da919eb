//! Becoming a target: from the connection to the running agent.
//!
//! Everything built on the way is undone when a step fails, and the program runs on as if we had not been loaded. A fork
//! child that the pager already serves goes on being served, only without an agent (behind a chroot, say, the
//! socket cannot be found). The one exception: when such a child has said hello and the pager hangs up, the pager is
//! gone, and so are pages of the child.

use vswap_wire::{Config, Greeting, Hello, RING_PAGES, Reason, Refusal, Welcome};

use crate::area::{Area, Beacon, State};
use crate::connection::{Connection, packet};
use crate::system::{self, Descriptor, Errno, O_CLOEXEC, O_NONBLOCK, call, nr};
use crate::thread;

/// What a fork child has from its parent.
#[derive(Clone, Copy)]
pub(crate) struct Inherited {
    /// Address of the beacon page.
    pub(crate) beacon: u64,
    /// What it read.
    pub(crate) token: u64,
}

/// Everything that a greeting needs.
struct Parts {
    /// None where the pager brings it with the welcome. Closed before the area is unmapped: the pager may have registered
    /// that already, and for as long as somebody could hear of it the kernel has us wait until somebody does.
    userfaultfd: Option<Descriptor>,
    area: Area,
    ring: Descriptor,
    pagemap: Descriptor,
    /// None where it was inherited.
    beacon: Option<Beacon>,
}

/// Sets an agent up, and says whether this process has one now.
pub(crate) fn set_up(config: &Config, inherited: Option<Inherited>) -> bool {
    try_set_up(config, inherited).is_some()
}

fn try_set_up(config: &Config, inherited: Option<Inherited>) -> Option<()> {
    let served = inherited.is_some_and(|inherited| inherited.token != 0);
    let lost = || {
        if served {
            // The pager had taken this address space over and no longer answers: it does not hang up on purpose.
            system::fail_stop();
        }
    };
    let connection = Connection::open(config).ok()?;
    let forked = inherited.is_some();
    let token = inherited.map_or(0, |inherited| inherited.token);
    let pid = system::getpid();
    let secret = config.secret();
    let mut buffer = packet();
    let parts = match build(config, inherited, &connection) {
        Ok(parts) => parts,
        Err((reason, errno)) => {
            let refusal = Hello::Refusal(Refusal { forked, pid, token, secret, reason, errno });
            // The pager may be gone; there is nothing left to undo either way.
            let _ = connection.send_hello(refusal.encode(&mut buffer), &[]);
            return None;
        }
    };
    let beacon = match (&parts.beacon, inherited) {
        (Some(beacon), _) => beacon.address(),
        (None, Some(inherited)) => inherited.beacon,
        (None, None) => return None,
    };
    let greeting = Hello::Greeting(Greeting {
        forked,
        pid,
        token,
        secret,
        area: parts.area.range(),
        staging: parts.area.staging(),
        beacon,
        ring_pages: RING_PAGES as u32,
    });
    let greeting = greeting.encode(&mut buffer);
    let sent = match &parts.userfaultfd {
        Some(userfaultfd) => connection.send_hello(greeting, &[userfaultfd, &parts.ring]),
        None => connection.send_hello(greeting, &[&parts.ring]),
    };
    let mut buffer = packet();
    let Ok((length, brought)) = sent.and_then(|()| connection.receive_welcome(&mut buffer)) else {
        lost();
        return None;
    };
    let Ok(welcome) = Welcome::decode(buffer.get(..length).unwrap_or(&[])) else {
        lost();
        return None;
    };
    let userfaultfd = parts.userfaultfd.or(brought)?;
    if !welcome.accepted {
        return None;
    }
    let stack_top = parts.area.stack_top();
    let state = State {
        running: core::sync::atomic::AtomicU32::new(0),
        socket: connection.socket().number(),
        userfaultfd: userfaultfd.number(),
        pagemap: parts.pagemap.number(),
        cookie: config.cookie(),
        staging: parts.area.staging(),
        ring: parts.area.ring(),
        batches: 0,
        full: false,
    };
    // Should the clone fail, the area stays behind: a megabyte of addresses, hardly a page of memory. The pager
    // sees the end of the connection.
    thread::start(parts.area.leak(state), stack_top).ok()?;
    // All descriptors are dropped from the program's table here; the thread has its own.
    if let Some(beacon) = parts.beacon {
        beacon.leak();
    }
    Some(())
}

fn build(
    config: &Config,
    inherited: Option<Inherited>,
    connection: &Connection,
) -> Result<Parts, (Reason, Errno)> {
    let userfaultfd = match inherited {
        Some(Inherited { token, .. }) if token != 0 => None,
        _ => Some(open_userfaultfd(config, connection).map_err(|errno| (Reason::Userfaultfd, errno))?),
    };
    // By this thread: the process's first one may have ended.
    let pagemap =
        system::open(c"/proc/thread-self/pagemap", O_CLOEXEC).map_err(|errno| (Reason::Pagemap, errno))?;
    let (area, ring) = Area::map().map_err(|errno| (Reason::Memory, errno))?;
    let beacon = match inherited {
        Some(_) => None,
        None => Some(Beacon::map(config.cookie()).map_err(|errno| (Reason::Memory, errno))?),
    };
    Ok(Parts { area, ring, pagemap, userfaultfd, beacon })
}

/// Opens a userfaultfd that also handles faults inside system calls.
///
/// The system call wants a capability or a sysctl; the device only its file mode, and container filters let it pass. To use the
/// device, once it is open, takes nothing; so a process that may not open it borrows the pager's.
fn open_userfaultfd(config: &Config, connection: &Connection) -> Result<Descriptor, Errno> {
    const O_RDWR: usize = 2;
    const USERFAULTFD_IOC_NEW: usize = 0xaa00;
    let flags = O_CLOEXEC | O_NONBLOCK;
    // SAFETY: touches no memory.
    if let Ok(number) = unsafe { call(nr::USERFAULTFD, &[flags]) } {
        return Ok(Descriptor::new(number));
    }
    let device = match system::open(c"/dev/userfaultfd", O_RDWR | O_CLOEXEC) {
        Ok(device) => device,
        Err(errno) => borrow_device(config, connection).ok_or(errno)?,
    };
    // SAFETY: this ioctl takes flags by value and touches no memory.
    unsafe { call(nr::IOCTL, &[device.arg(), USERFAULTFD_IOC_NEW, flags]) }.map(Descriptor::new)
}

/// The pager's /dev/userfaultfd, if it may open that and gives it to us.
fn borrow_device(config: &Config, connection: &Connection) -> Option<Descriptor> {
    let mut buffer = packet();
    connection.send_hello(Hello::Device { secret: config.secret() }.encode(&mut buffer), &[]).ok()?;
    let (length, device) = connection.receive_welcome(&mut buffer).ok()?;
    let welcome = Welcome::decode(buffer.get(..length)?).ok()?;
    device.filter(|_| welcome.accepted)
}
