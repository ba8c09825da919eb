//! The agent's library file: built by `build.rs`, carried inside this program, patched afresh for each run.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use vswap_wire::{Config, PatchError};

/// The library as it was built. Preloaded like this, it does nothing.
pub(crate) static UNPATCHED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libvswap_agent.so"));

/// The bytes of a library whose agents connect to `socket`, show `secret` and pass the mremap gate with `cookie`.
///
/// # Errors
/// [`PatchError::Path`] when the path is empty, contains a NUL or is longer than
/// [`SOCKET_PATH_MAX`](vswap_wire::SOCKET_PATH_MAX) bytes.
pub fn image(socket: &Path, secret: [u8; 16], cookie: u64) -> Result<Vec<u8>, PatchError> {
    let mut image = UNPATCHED.to_vec();
    Config::patch(&mut image, socket.as_os_str().as_bytes(), secret, cookie)?;
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_library_holds_exactly_one_block() {
        let path = Path::new("/run/vswap-0-1-abcdef/pager");
        let image = image(path, [7; 16], 42).unwrap();
        assert_eq!(image.len(), UNPATCHED.len());
        assert!(image.windows(path.as_os_str().len()).any(|window| window == path.as_os_str().as_bytes()));
    }

    #[test]
    fn a_path_that_no_socket_can_have_is_refused() {
        let long = "x".repeat(108);
        assert_eq!(image(Path::new(&long), [0; 16], 0), Err(PatchError::Path(108)));
    }
}
