//! Programs made for the purpose, one per thing that can be wrong with them.

use std::os::unix::fs::PermissionsExt;

use super::*;

const PT_INTERP: u32 = 3;
const EM_X86_64: u16 = 62;

/// A directory of this test, removed with it.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("vswap-launch-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn file(&self, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn resolve(&self, args: &[&str]) -> Result<Program, LaunchError> {
        let command: Vec<_> = args.iter().map(OsString::from).collect();
        resolve(&command, Some(self.0.as_os_str()))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A minimal ELF: header, one program header of the given type, and a loader's name.
fn elf_file(class: u8, machine: u16, segment: u32, loader: &str) -> Vec<u8> {
    let mut bytes = vec![0; 120];
    bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, 1]);
    bytes[18..20].copy_from_slice(&machine.to_le_bytes());
    bytes[32] = 64;
    bytes[54] = 56;
    bytes[56] = 1;
    bytes[64..68].copy_from_slice(&segment.to_le_bytes());
    bytes[72] = 120;
    bytes[96..104].copy_from_slice(&(loader.len() as u64 + 1).to_le_bytes());
    bytes.extend_from_slice(loader.as_bytes());
    bytes.push(0);
    bytes
}

#[test]
fn finds_programs_as_execvp_does() {
    let dir = Dir::new("find");
    let loader = "/proc/self/exe";
    dir.file("good", &elf_file(2, EM_X86_64, PT_INTERP, loader), 0o755);
    dir.file("plain", b"text", 0o644);
    fs::create_dir(dir.0.join("sub")).unwrap();

    let program = dir.resolve(&["good", "-x"]).unwrap();
    assert_eq!((program.file, program.unpaged), (dir.0.join("good"), None));
    assert_eq!(program.args, ["good", "-x"]);

    let error = dir.resolve(&["absent"]).unwrap_err();
    assert_eq!(error.exit_code(), 127);
    assert!(error.to_string().contains("PATH"));
    assert_eq!(dir.resolve(&["/no/such/file"]).unwrap_err().exit_code(), 127);
    assert_eq!(dir.resolve(&[""]).unwrap_err().exit_code(), 127);
    assert_eq!(dir.resolve(&["plain"]).unwrap_err().exit_code(), 126);
    assert_eq!(dir.resolve(&["sub"]).unwrap_err().exit_code(), 126);
    assert_eq!(dir.resolve(&["/dev/null"]).unwrap_err().exit_code(), 126);
}

#[test]
fn later_directories_are_searched_past_a_denied_one() {
    let (first, second) = (Dir::new("first"), Dir::new("second"));
    first.file("tool", b"x", 0o644);
    let good = second.file("tool", &elf_file(2, EM_X86_64, PT_INTERP, "/proc/self/exe"), 0o755);
    let path = OsString::from(format!("{}:{}", first.0.display(), second.0.display()));
    assert_eq!(resolve(&["tool".into()], Some(&path)).unwrap().file, good);
}

#[test]
fn the_system_shell_can_be_paged() {
    let program = resolve(&["sh".into()], None).unwrap();
    assert_eq!((program.unpaged, program.without_loader), (None, false));
    assert!(program.file.is_absolute());
}

#[test]
fn static_programs_are_entered_otherwise_and_foreign_ones_not_at_all() {
    let dir = Dir::new("static");
    dir.file("static", &elf_file(2, EM_X86_64, 1, ""), 0o755);
    let program = dir.resolve(&["static"]).unwrap();
    assert_eq!((program.unpaged, program.without_loader), (None, true));
    let file = dir.file("i386", &elf_file(1, 3, PT_INTERP, "/lib/ld"), 0o755);
    assert_eq!(dir.resolve(&["i386"]).unwrap().unpaged, Some(Unpageable::Foreign(file)));
    let file = dir.file("arm", &elf_file(2, 183, PT_INTERP, "/lib/ld"), 0o755);
    let unpaged = dir.resolve(&["arm"]).unwrap().unpaged.unwrap();
    assert_eq!(unpaged, Unpageable::Foreign(file));
    assert!(unpaged.to_string().contains("x86-64"));
}

#[test]
fn a_missing_loader_is_named() {
    let dir = Dir::new("loader");
    dir.file("musl", &elf_file(2, EM_X86_64, PT_INTERP, "/no/ld-musl.so"), 0o755);
    let error = dir.resolve(&["musl"]).unwrap_err();
    assert_eq!(error.exit_code(), 127);
    assert!(error.to_string().contains("/no/ld-musl.so"));
}

#[test]
fn damaged_files_are_errors_not_panics() {
    let dir = Dir::new("damaged");
    let whole = elf_file(2, EM_X86_64, PT_INTERP, "/proc/self/exe");
    for length in 4..whole.len() {
        dir.file("cut", &whole[..length], 0o755);
        match dir.resolve(&["cut"]) {
            Ok(program) => assert!(length < 20, "{length}: {program:?}"),
            Err(error) => assert_eq!(error.exit_code(), 126, "{length}: {error}"),
        }
    }
    for at in 20..120 {
        let mut bytes = whole.clone();
        bytes[at] = 0xff;
        dir.file("bad", &bytes, 0o755);
        // Whatever the answer, it is one.
        let _ = dir.resolve(&["bad"]);
    }
    dir.file("empty", b"", 0o755);
    assert_eq!(dir.resolve(&["empty"]).unwrap_err().exit_code(), 126);
}

#[test]
fn scripts_are_what_their_interpreter_is() {
    let dir = Dir::new("scripts");
    let dynamic = dir.file("dynamic", &elf_file(2, EM_X86_64, PT_INTERP, "/proc/self/exe"), 0o755);
    let fixed = dir.file("fixed", &elf_file(2, EM_X86_64, 1, ""), 0o755);
    let script = dir.file("script", format!("#! {} -u\nx", dynamic.display()).as_bytes(), 0o755);
    assert_eq!(dir.resolve(&["script"]).unwrap().unpaged, None);
    dir.file("nested", format!("#!{}\n", script.display()).as_bytes(), 0o755);
    assert_eq!(dir.resolve(&["nested"]).unwrap().unpaged, None);
    dir.file("static-script", format!("#!{}\n", fixed.display()).as_bytes(), 0o755);
    assert!(dir.resolve(&["static-script"]).unwrap().without_loader);
    dir.file("lost", b"#!/no/such/interpreter\n", 0o755);
    let error = dir.resolve(&["lost"]).unwrap_err();
    assert_eq!(error.exit_code(), 127);
    assert!(error.to_string().contains("/no/such/interpreter"));
    let looped = dir.0.join("loop");
    dir.file("loop", format!("#!{}\n", looped.display()).as_bytes(), 0o755);
    assert_eq!(dir.resolve(&["loop"]).unwrap_err().exit_code(), 126);
}

#[test]
fn a_script_without_a_first_line_is_the_shells() {
    let dir = Dir::new("text");
    let file = dir.file("old", b"echo hello\n", 0o755);
    let program = dir.resolve(&["old", "arg"]).unwrap();
    assert_eq!(program.file, Path::new("/bin/sh"));
    assert_eq!(program.args, [OsStr::new("/bin/sh"), file.as_os_str(), OsStr::new("arg")]);
}

#[test]
fn set_user_id_programs_cannot_be_entered() {
    let dir = Dir::new("setuid");
    let mut bytes = elf_file(2, EM_X86_64, PT_INTERP, "/proc/self/exe");
    bytes.push(0);
    let file = dir.file("own", &bytes, 0o4755);
    // Our own: no privilege changes hands.
    assert_eq!(dir.resolve(&["own"]).unwrap().unpaged, None);
    // Another's: only root can make such a file.
    if rustix::process::getuid().is_root() && !rustix::thread::no_new_privs().unwrap() {
        std::os::unix::fs::chown(&file, Some(12345), None).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
        let unpaged = dir.resolve(&["own"]).unwrap().unpaged.unwrap();
        assert_eq!(unpaged, Unpageable::Secure { file, what: "set-user-id" });
        assert!(unpaged.to_string().contains("set-user-id"));
    }
}
