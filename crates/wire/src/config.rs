//! The configuration block inside the agent's library.
//!
//! The library is built once and carries an unpatched block in its `.data`; each run writes its own copy of the
//! library with the block filled in. That way nothing depends on the environment, which programs edit, clear and
//! pass on selectively, and an agent needs no parser.
//!
//! ```text
//! offset  0   16 bytes  magic, found exactly once in the library
//!        16  108 bytes  path of the pager's socket, NUL-terminated
//!       124    4 bytes  flags: bit 0 = patched, bit 1 = forks are stopped at the gate
//!       128   16 bytes  secret of the run
//!       144    8 bytes  cookie that lets the agent's calls pass the gate
//!       152    8 bytes  0; in memory the address of the beacon, once the library has one (not part of the block)
//! ```

use core::fmt;

/// The bytes in front of every configuration block.
pub const CONFIG_MAGIC: [u8; 16] = *b"\x9a\xfevswap-agent-\xc3\x01";

/// The longest path of a socket in bytes: what sockaddr_un holds, less the terminating NUL.
pub const SOCKET_PATH_MAX: usize = 107;

const PATH: usize = 16;
const FLAGS: usize = 124;
const SECRET: usize = 128;
const COOKIE: usize = 144;
const SIZE: usize = 152;

const PATCHED: u32 = 1;
const FORKS_STOPPED: u32 = 2;

/// Where behind the start of the block the agent keeps the address of its beacon; 0 while it has none.
pub const BEACON_OFFSET: usize = SIZE;

const _: () = assert!(size_of::<Config>() == SIZE);

/// The block as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    magic: [u8; 16],
    socket_path: [u8; SOCKET_PATH_MAX + 1],
    flags: u32,
    secret: [u8; 16],
    cookie: u64,
}

/// Why a library could not be patched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchError {
    /// The image holds this many configuration blocks instead of one.
    Blocks(usize),
    /// The path is empty, has a NUL inside or is longer than [`SOCKET_PATH_MAX`] bytes.
    Path(usize),
}

impl fmt::Display for PatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PatchError::Blocks(found) => {
                write!(f, "the agent's library holds {found} configuration blocks instead of one")
            }
            PatchError::Path(length) => write!(
                f,
                "a socket path of {length} bytes is empty, has a NUL inside or exceeds {SOCKET_PATH_MAX} \
                 bytes: choose a shorter run directory"
            ),
        }
    }
}

impl core::error::Error for PatchError {}

impl Config {
    /// The block of a library that no run has patched yet.
    pub const UNPATCHED: Config = Config {
        magic: CONFIG_MAGIC,
        socket_path: [0; SOCKET_PATH_MAX + 1],
        flags: 0,
        secret: [0; 16],
        cookie: 0,
    };

    /// Fills in the one configuration block of a library.
    ///
    /// # Errors
    /// [`PatchError`]; the image is untouched then.
    pub fn patch(
        image: &mut [u8],
        socket_path: &[u8],
        secret: [u8; 16],
        cookie: u64,
        forks_stopped: bool,
    ) -> Result<(), PatchError> {
        if socket_path.is_empty() || socket_path.len() > SOCKET_PATH_MAX || socket_path.contains(&0) {
            return Err(PatchError::Path(socket_path.len()));
        }
        let at = Config::find(image)?;
        let block = &mut image[at..at + SIZE];
        block[PATH..FLAGS].fill(0);
        block[PATH..PATH + socket_path.len()].copy_from_slice(socket_path);
        let flags = if forks_stopped { PATCHED | FORKS_STOPPED } else { PATCHED };
        block[FLAGS..SECRET].copy_from_slice(&flags.to_le_bytes());
        block[SECRET..COOKIE].copy_from_slice(&secret);
        block[COOKIE..SIZE].copy_from_slice(&cookie.to_le_bytes());
        Ok(())
    }

    /// The offset of the one configuration block in a library.
    ///
    /// # Errors
    /// [`PatchError::Blocks`].
    pub fn find(image: &[u8]) -> Result<usize, PatchError> {
        let found = image.windows(CONFIG_MAGIC.len()).filter(|window| *window == CONFIG_MAGIC).count();
        let at = image.windows(CONFIG_MAGIC.len()).position(|window| window == CONFIG_MAGIC);
        match at.filter(|at| image.len() - at >= SIZE) {
            Some(at) if found == 1 => Ok(at),
            _ => Err(PatchError::Blocks(if found == 1 { 0 } else { found })),
        }
    }

    /// Whether a run has filled the block in. In any other library the agent does nothing.
    ///
    /// The magic is not compared: that would put a second copy of it into the library's code.
    pub fn is_patched(&self) -> bool {
        u32::from_le(self.flags) & PATCHED != 0 && !self.socket_path().is_empty()
    }

    /// The path of the pager's socket without its NUL; empty if there is none.
    pub fn socket_path(&self) -> &[u8] {
        match self.socket_path.split(|byte| *byte == 0).next() {
            Some(path) if path.len() <= SOCKET_PATH_MAX => path,
            _ => &[],
        }
    }

    /// Whether the gate stops forks: then whoever has forked says that it is over, by another call that the gate stops.
    pub fn forks_stopped(&self) -> bool {
        u32::from_le(self.flags) & FORKS_STOPPED != 0
    }

    /// The secret of the run.
    pub fn secret(&self) -> [u8; 16] {
        self.secret
    }

    /// The cookie that lets the agent's calls pass the gate.
    pub fn cookie(&self) -> u64 {
        u64::from_le(self.cookie)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(blocks: &[usize]) -> [u8; 1024] {
        let mut image = [0xccu8; 1024];
        for at in blocks {
            image[*at..*at + 16].copy_from_slice(&CONFIG_MAGIC);
        }
        image
    }

    #[test]
    fn fields_lie_where_patch_writes_them() {
        assert_eq!(core::mem::offset_of!(Config, socket_path), PATH);
        assert_eq!(core::mem::offset_of!(Config, flags), FLAGS);
        assert_eq!(core::mem::offset_of!(Config, secret), SECRET);
        assert_eq!(core::mem::offset_of!(Config, cookie), COOKIE);
    }

    #[test]
    fn patches_the_block_and_nothing_else() {
        let mut image = image(&[300]);
        Config::patch(&mut image, b"/run/x/pager", [3; 16], 0x0123_4567_89ab_cdef, true).unwrap();
        let block = &image[300..300 + SIZE];
        assert_eq!(&block[..PATH + 13], b"\x9a\xfevswap-agent-\xc3\x01/run/x/pager\0");
        assert_eq!(&block[FLAGS..SECRET], &[3, 0, 0, 0]);
        assert_eq!(&block[SECRET..COOKIE], &[3; 16]);
        assert_eq!(&block[COOKIE..], &0x0123_4567_89ab_cdefu64.to_le_bytes());
        assert!(image[..300].iter().chain(&image[300 + SIZE..]).all(|byte| *byte == 0xcc));
    }

    #[test]
    fn only_exactly_one_whole_block_will_do() {
        for (blocks, found) in [(&[][..], 0), (&[10, 400], 2), (&[1000], 0)] {
            let mut bytes = image(blocks);
            assert_eq!(Config::patch(&mut bytes, b"/a", [0; 16], 0, false), Err(PatchError::Blocks(found)));
            assert_eq!(bytes, image(blocks));
        }
    }

    #[test]
    fn paths_are_bounded() {
        for path in [&b""[..], b"/a\0b", &[b'x'; 108]] {
            assert_eq!(
                Config::patch(&mut image(&[0]), path, [0; 16], 0, false),
                Err(PatchError::Path(path.len()))
            );
        }
        assert_eq!(Config::patch(&mut image(&[0]), &[b'x'; 107], [0; 16], 0, false), Ok(()));
    }

    #[test]
    fn an_unpatched_block_says_so() {
        let mut config = Config::UNPATCHED;
        assert!(!config.is_patched());
        config.flags = PATCHED;
        assert!(!config.is_patched());
        config.socket_path[..2].copy_from_slice(b"/a");
        assert!(config.is_patched());
        assert_eq!(config.socket_path(), b"/a");
        config.socket_path = [b'x'; 108];
        assert!(!config.is_patched());
    }
}
