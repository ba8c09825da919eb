//! The agent's library file: built by `build.rs`, carried inside this program, patched afresh for each run.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vswap_wire::{Config, PatchError};

/// The library as it was built. Preloaded like this, it does nothing.
pub(crate) static UNPATCHED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libvswap_agent.so"));

/// The bytes of a library whose agents connect to `socket`, show `secret` and pass the gate with `cookie`; the gate may be one
/// that stops forks.
///
/// # Errors
/// [`PatchError::Path`] when the path is empty, contains a NUL or is longer than
/// [`SOCKET_PATH_MAX`](vswap_wire::SOCKET_PATH_MAX) bytes.
pub fn image(
    socket: &Path,
    secret: [u8; 16],
    cookie: u64,
    forks_stopped: bool,
) -> Result<Vec<u8>, PatchError> {
    let mut image = UNPATCHED.to_vec();
    Config::patch(&mut image, socket.as_os_str().as_bytes(), secret, cookie, forks_stopped)?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_library_holds_exactly_one_block() {
        let path = Path::new("/run/vswap-0-1-abcdef/pager");
        let image = image(path, [7; 16], 42, false).unwrap();
        assert_eq!(image.len(), UNPATCHED.len());
        assert!(image.windows(path.as_os_str().len()).any(|window| window == path.as_os_str().as_bytes()));
    }

    /// What the agent's own rules ask of its file: nothing to be bound later or elsewhere, no thread-local storage, and no
    /// page of `.bss`, which would be anonymous memory that the pager may take.
    #[test]
    fn the_built_library_stands_alone() {
        const PAGE: u64 = 4096;
        let image = UNPATCHED;
        let half = |at: usize| u64::from(u16::from_le_bytes(image[at..at + 2].try_into().unwrap()));
        let word = |at: usize| u64::from(u32::from_le_bytes(image[at..at + 4].try_into().unwrap()));
        let long = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
        let (table, size, count) = (long(32) as usize, half(54) as usize, half(56) as usize);
        let mut dynamic = 0..0;
        for header in (0..count).map(|index| table + index * size) {
            let (kind, flags) = (word(header), word(header + 4));
            let (offset, address) = (long(header + 8), long(header + 16));
            let (in_file, in_memory) = (long(header + 32), long(header + 40));
            match kind {
                1 => {
                    assert!(flags & 3 != 3, "writable code");
                    let pages = |bytes: u64| (address + bytes).div_ceil(PAGE);
                    assert_eq!(pages(in_file), pages(in_memory), "a page of .bss");
                }
                2 => dynamic = offset as usize..(offset + in_file) as usize,
                7 => panic!("thread-local storage"),
                0x6474_e551 => assert_eq!(flags & 1, 0, "executable stack"),
                _ => {}
            }
        }
        let tags: Vec<(u64, u64)> = dynamic.step_by(16).map(|at| (long(at), long(at + 8))).collect();
        let tag = |wanted: u64| tags.iter().find(|(tag, _)| *tag == wanted).map(|(_, value)| *value);
        assert_eq!(tag(1), None, "needs another library");
        assert_eq!(tag(23), None, "lazily bound calls");
        assert_eq!(tag(22), None, "relocated code");
        assert_eq!(tag(25).map(|_| tag(27)), Some(Some(8)), "exactly one constructor");
        // The dynamic symbols lie in a part of the file that is mapped where it lies, and end where their names begin
        // or the hash table does.
        let symbols = tag(6).unwrap() as usize;
        let names = tag(5).unwrap() as usize;
        let end = [tag(5), tag(0x6fff_fef5)].into_iter().flatten().map(|at| at as usize);
        let end = end.filter(|at| *at > symbols).min().unwrap();
        let found: Vec<&[u8]> = (symbols + 24..end - 23)
            .step_by(24)
            .map(|at| image[names + word(at) as usize..].split(|byte| *byte == 0).next().unwrap())
            .collect();
        assert_eq!(found, [b"__register_atfork"]);
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let long = "x".repeat(108);
        assert_eq!(image(Path::new(&long), [0; 16], 0, false), Err(PatchError::Path(108)));
    }
}
