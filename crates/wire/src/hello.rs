//! The first packet of each side: who the agent is and what it mapped, and whether the pager takes it.

use core::ops::Range;

use crate::codec::{Malformed, Reader, Writer};
use crate::{BATCH_PAGES, Buffer, PAGE, RING_PAGES, USER_END, VERSION};

const GREETING: u32 = 0x7673_0001;
const REFUSAL: u32 = 0x7673_0002;
const WELCOME: u32 = 0x7673_0003;
const DEVICE: u32 = 0x7673_0004;

const STAGING_BYTES: u64 = BATCH_PAGES as u64 * PAGE;

/// The first packet of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// The agent is ready to serve.
    Greeting(Greeting),
    /// There will be no agent in this process: it stays unpaged, and the pager must count it as such.
    Refusal(Refusal),
    /// Its process may not open a userfaultfd (it has changed its user, say): could the pager lend it the device? Answered by a
    /// [`Welcome`], with the device if it accepts; then the greeting or the refusal follows.
    Device {
        /// As in [`Greeting::secret`].
        secret: [u8; 16],
    },
}

/// An agent presents itself.
///
/// It carries [`Greeting::descriptors`] descriptors: with `token == 0` the userfaultfd (the pager has yet to
/// call UFFDIO_API on it and to register staging) and then the ring's memfd; with a token only the ring's memfd.
/// The pager must not trust the memfd before it has checked its seals (SHRINK, GROW) and size itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Sent by the child hook of a fork, not by a program that has just been executed.
    pub forked: bool,
    /// The process id as the target sees it; in another pid namespace the pager knows it by another.
    pub pid: u32,
    /// What the beacon page read: the number the pager put there for this child of a fork, or 0.
    pub token: u64,
    /// The secret of this run, from the configuration patched into the library.
    pub secret: [u8; 16],
    /// Every mapping of the agent except the beacon: never register, scan or evict anything here but staging.
    pub area: Range<u64>,
    /// Address of staging, [`BATCH_PAGES`] pages, inside `area` with a guard page on each side.
    pub staging: u64,
    /// Address of the beacon page. A fork child keeps its parent's, so it need not lie in `area`.
    pub beacon: u64,
    /// Pages at the start of the memfd that the pager maps: [`RING_PAGES`].
    pub ring_pages: u32,
}

impl Greeting {
    /// How many descriptors come with this greeting.
    pub fn descriptors(&self) -> usize {
        if self.token == 0 { 2 } else { 1 }
    }

    fn check(&self) -> Result<(), Malformed> {
        let Range { start, end } = self.area;
        if self.pid == 0 || self.pid > i32::MAX as u32 {
            return Err(Malformed::Field("pid"));
        }
        if self.token != 0 && !self.forked {
            return Err(Malformed::Field("token"));
        }
        if start % PAGE != 0 || end % PAGE != 0 || start >= end || end > USER_END {
            return Err(Malformed::Field("area"));
        }
        // No sum here can wrap: `end` is below 2^56, and `staging` is compared before anything is added.
        let room =
            start + PAGE <= self.staging && self.staging < end && self.staging + STAGING_BYTES + PAGE <= end;
        if !self.staging.is_multiple_of(PAGE) || !room {
            return Err(Malformed::Field("staging"));
        }
        if !self.beacon.is_multiple_of(PAGE)
            || self.beacon == 0
            || self.beacon >= USER_END
            || self.area.contains(&self.beacon)
        {
            return Err(Malformed::Field("beacon"));
        }
        if self.ring_pages != RING_PAGES as u32 {
            return Err(Malformed::Field("ring_pages"));
        }
        Ok(())
    }
}

/// An agent could not be set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// As in [`Greeting::forked`].
    pub forked: bool,
    /// As in [`Greeting::pid`].
    pub pid: u32,
    /// As in [`Greeting::token`]; when not 0 the pager goes on serving the child's faults.
    pub token: u64,
    /// As in [`Greeting::secret`].
    pub secret: [u8; 16],
    /// What failed.
    pub reason: Reason,
    /// The error number it failed with, 1 to 4095.
    pub errno: i32,
}

/// Which step of an agent's set-up failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// No userfaultfd: neither the system call nor /dev/userfaultfd, nor the pager's.
    Userfaultfd = 1,
    /// The agent's area, ring or beacon could not be mapped.
    Memory = 2,
    /// /proc/thread-self/pagemap cannot be read.
    Pagemap = 3,
}

impl Hello {
    /// Encodes this message.
    pub fn encode<'b>(&self, buffer: &'b mut Buffer) -> &'b [u8] {
        match self {
            Hello::Greeting(greeting) => {
                let mut w = Writer::new(buffer, GREETING);
                w.u32(VERSION);
                w.bool(greeting.forked);
                w.u32(greeting.pid);
                w.u64(greeting.token);
                w.bytes(&greeting.secret);
                w.u64(greeting.area.start);
                w.u64(greeting.area.end);
                w.u64(greeting.staging);
                w.u64(greeting.beacon);
                w.u32(greeting.ring_pages);
                w.finish()
            }
            Hello::Refusal(refusal) => {
                let mut w = Writer::new(buffer, REFUSAL);
                w.u32(VERSION);
                w.bool(refusal.forked);
                w.u32(refusal.pid);
                w.u64(refusal.token);
                w.bytes(&refusal.secret);
                w.u32(refusal.reason as u32);
                w.u32(refusal.errno.cast_unsigned());
                w.finish()
            }
            Hello::Device { secret } => {
                let mut w = Writer::new(buffer, DEVICE);
                w.u32(VERSION);
                w.bytes(secret);
                w.finish()
            }
        }
    }

    /// Decodes a packet of an agent that has not been heard before.
    ///
    /// # Errors
    /// [`Malformed`] for anything an honest agent of this version cannot have sent. The secret is *not*
    /// checked here.
    pub fn decode(bytes: &[u8]) -> Result<Hello, Malformed> {
        let mut r = Reader::new(bytes);
        let kind = r.u32()?;
        if ![GREETING, REFUSAL, DEVICE].contains(&kind) {
            return Err(Malformed::Kind(kind));
        }
        let version = r.u32()?;
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        if kind == DEVICE {
            let secret = r.array()?;
            r.end()?;
            return Ok(Hello::Device { secret });
        }
        let forked = r.bool("forked")?;
        let pid = r.u32()?;
        let token = r.u64()?;
        let secret = r.array()?;
        if kind == GREETING {
            let area = r.u64()?..r.u64()?;
            let greeting = Greeting {
                forked,
                pid,
                token,
                secret,
                area,
                staging: r.u64()?,
                beacon: r.u64()?,
                ring_pages: r.u32()?,
            };
            r.end()?;
            greeting.check()?;
            return Ok(Hello::Greeting(greeting));
        }
        let reason = match r.u32()? {
            1 => Reason::Userfaultfd,
            2 => Reason::Memory,
            3 => Reason::Pagemap,
            _ => return Err(Malformed::Field("reason")),
        };
        let errno = r.u32()?.cast_signed();
        r.end()?;
        if !(1..=4095).contains(&errno) {
            return Err(Malformed::Field("errno"));
        }
        if pid == 0 || pid > i32::MAX as u32 {
            return Err(Malformed::Field("pid"));
        }
        if token != 0 && !forked {
            return Err(Malformed::Field("token"));
        }
        Ok(Hello::Refusal(Refusal { forked, pid, token, secret, reason, errno }))
    }
}

/// The pager's answer to a [`Greeting`] or to [`Hello::Device`].
///
/// When it accepts a greeting that carried a token, the child's userfaultfd comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Welcome {
    /// The agent may start; otherwise it takes down what it built, and the program runs on without it.
    pub accepted: bool,
    /// Why not, for a person with a debugger; means nothing to the agent.
    pub reason: u32,
}

impl Welcome {
    /// Encodes this message.
    pub fn encode<'b>(&self, buffer: &'b mut Buffer) -> &'b [u8] {
        let mut w = Writer::new(buffer, WELCOME);
        w.bool(self.accepted);
        w.u32(self.reason);
        w.finish()
    }

    /// Decodes the pager's first packet.
    ///
    /// # Errors
    /// [`Malformed`] for anything that is not a welcome.
    pub fn decode(bytes: &[u8]) -> Result<Welcome, Malformed> {
        let mut r = Reader::new(bytes);
        let kind = r.u32()?;
        if kind != WELCOME {
            return Err(Malformed::Kind(kind));
        }
        let welcome = Welcome { accepted: r.bool("accepted")?, reason: r.u32()? };
        r.end()?;
        Ok(welcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer;
    use crate::noise::{Noise, torment};

    fn greeting() -> Greeting {
        let start = 0x7f00_0000_0000;
        Greeting {
            forked: true,
            pid: 4711,
            token: 99,
            secret: *b"0123456789abcdef",
            area: start..start + 300 * PAGE,
            staging: start + PAGE,
            beacon: start - 8 * PAGE,
            ring_pages: RING_PAGES as u32,
        }
    }

    fn decoded(greeting: &Greeting) -> Result<Hello, Malformed> {
        Hello::decode(Hello::Greeting(greeting.clone()).encode(&mut buffer()))
    }

    #[test]
    fn greeting_comes_back() {
        assert_eq!(decoded(&greeting()), Ok(Hello::Greeting(greeting())));
        assert_eq!(greeting().descriptors(), 1);
        let fresh = Greeting { token: 0, forked: false, ..greeting() };
        assert_eq!(decoded(&fresh), Ok(Hello::Greeting(fresh.clone())));
        assert_eq!(fresh.descriptors(), 2);
    }

    #[test]
    fn refusal_comes_back() {
        for reason in [Reason::Userfaultfd, Reason::Memory, Reason::Pagemap] {
            let refusal = Hello::Refusal(Refusal {
                forked: false,
                pid: 1,
                token: 0,
                secret: [7; 16],
                reason,
                errno: 1,
            });
            assert_eq!(Hello::decode(refusal.encode(&mut buffer())), Ok(refusal));
        }
    }

    #[test]
    fn impossible_greetings_are_refused() {
        let good = greeting();
        let field = |greeting: Greeting| match decoded(&greeting) {
            Err(Malformed::Field(name)) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(Greeting { pid: 0, ..good.clone() }), "pid");
        assert_eq!(field(Greeting { pid: u32::MAX, ..good.clone() }), "pid");
        assert_eq!(field(Greeting { forked: false, ..good.clone() }), "token");
        let (start, end) = (good.area.start, good.area.end);
        for area in
            [start + 1..end, start..end - 1, end..start, start..start, start..u64::MAX, 0..USER_END + PAGE]
        {
            assert_eq!(field(Greeting { area, ..good.clone() }), "area");
        }
        for staging in [0, start, start + PAGE + 8, end - PAGE * BATCH_PAGES as u64, end, !4095] {
            assert_eq!(field(Greeting { staging, ..good.clone() }), "staging");
        }
        for beacon in [0, 1, start, end - PAGE, USER_END, u64::MAX] {
            assert_eq!(field(Greeting { beacon, ..good.clone() }), "beacon");
        }
        assert_eq!(field(Greeting { ring_pages: 128, ..good.clone() }), "ring_pages");
    }

    #[test]
    fn another_version_is_named() {
        let mut buffer = buffer();
        let length = Hello::Greeting(greeting()).encode(&mut buffer).len();
        buffer[4..8].copy_from_slice(&7u32.to_le_bytes());
        assert_eq!(Hello::decode(&buffer[..length]), Err(Malformed::Version(7)));
    }

    #[test]
    fn welcome_comes_back() {
        for accepted in [false, true] {
            let welcome = Welcome { accepted, reason: 0xdead_beef };
            assert_eq!(Welcome::decode(welcome.encode(&mut buffer())), Ok(welcome));
        }
    }

    #[test]
    fn noise_never_panics_and_survivors_encode_to_themselves() {
        let mut noise = Noise::new(1);
        let mut seed = buffer();
        let greeting = Hello::Greeting(greeting()).encode(&mut seed);
        torment(&mut noise, greeting, |bytes| {
            Hello::decode(bytes).is_ok_and(|hello| {
                assert_eq!(hello.encode(&mut buffer()), bytes);
                true
            })
        });
        let mut seed = buffer();
        let device = Hello::Device { secret: [7; 16] }.encode(&mut seed);
        torment(&mut noise, device, |bytes| {
            Hello::decode(bytes).is_ok_and(|hello| {
                assert_eq!(hello.encode(&mut buffer()), bytes);
                true
            })
        });
        let mut seed = buffer();
        let welcome = Welcome { accepted: true, reason: 0 }.encode(&mut seed);
        torment(&mut noise, welcome, |bytes| {
            Welcome::decode(bytes).is_ok_and(|welcome| {
                assert_eq!(welcome.encode(&mut buffer()), bytes);
                true
            })
        });
    }
}
