//! A pager in miniature: accepts agents, answers their faults from a table of pages, records events.
//!
//! It knows nothing of limits, windows or order: each test drives one target through one story, so that what fails is the
//! agent. Every wait has a bound: a deadlock fails the test instead of hanging it.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vswap_sys::poll::{Events, poll};
use vswap_sys::shared::SharedPages;
use vswap_sys::socket::{Conn, Listener};
use vswap_sys::uffd::{FEATURES, Message, RegisterMode, Uffd};
use vswap_wire::{
    Answer, BATCH_PAGES, Command as Order, Greeting, Hello, Refusal, Run, Runs, TALLY, Welcome, buffer,
};

use crate::agent_image;

pub(crate) const PAGE: u64 = vswap_wire::PAGE;
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const COOKIE: u64 = 0x0123_4567_89ab_cdef;

pub(crate) type Page = [u8; PAGE as usize];

/// Pages taken out of one address space, by address.
type Store = Arc<Mutex<HashMap<u64, Page>>>;

/// Userfaultfds of fork children that have not greeted yet, by token.
type Births = Arc<Mutex<HashMap<u64, Service>>>;

/// A run directory with a patched library and a listening socket.
pub(crate) struct Pager {
    pub(crate) directory: PathBuf,
    listener: Listener,
    births: Births,
    secret: [u8; 16],
    /// Register the beacon, as a pager does that can follow forks.
    pub(crate) follow_forks: bool,
}

impl Pager {
    pub(crate) fn new() -> Pager {
        let able = Uffd::open().is_ok_and(|uffd| uffd.api(FEATURES).is_ok());
        assert!(able, "this needs a userfaultfd with UFFDIO_MOVE and CAP_SYS_PTRACE");
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("vswap-agent-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).unwrap();
        let socket = directory.join("pager");
        let secret = *b"sixteen bytes of";
        let image = agent_image::image(&socket, secret, COOKIE, false).unwrap();
        let library = directory.join("agent.so");
        std::fs::write(&library, image).unwrap();
        std::fs::set_permissions(&library, PermissionsExt::from_mode(0o755)).unwrap();
        let listener = Listener::bind(&socket, 0o777).unwrap();
        Pager { directory, listener, births: Births::default(), secret, follow_forks: true }
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.directory.join("agent.so")
    }

    /// A program that will load the agent, with pipes on standard input and output.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env("LD_PRELOAD", self.library()).stdin(Stdio::piped()).stdout(Stdio::piped());
        command
    }

    fn accept(&self) -> Conn {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(conn) = self.listener.accept_nonblocking().unwrap() {
                return conn;
            }
            assert!(Instant::now() < deadline, "no agent has connected");
            poll(&[(self.listener.as_fd(), Events::IN)], Some(Duration::from_millis(100))).unwrap();
        }
    }

    /// Welcomes an agent if one comes within some milliseconds.
    pub(crate) fn welcome_if_any(&self) -> Option<Target> {
        let ready = poll(&[(self.listener.as_fd(), Events::IN)], Some(Duration::from_millis(20))).unwrap()[0];
        (!ready.is_empty()).then(|| self.welcome())
    }

    /// Whether an agent is waiting to be accepted.
    pub(crate) fn nobody_came(&self) -> bool {
        self.listener.accept_nonblocking().unwrap().is_none()
    }

    /// The first packet of the next agent.
    pub(crate) fn hello(&self) -> (Conn, Hello, Vec<OwnedFd>) {
        let conn = self.accept();
        let mut packet = buffer();
        let (length, mut fds) = receive(&conn, &mut packet);
        let mut hello = Hello::decode(&packet[..length]).unwrap();
        if let Hello::Device { secret } = hello {
            // Without the device, as from a pager that may not open it either.
            assert_eq!(secret, self.secret);
            conn.send(Welcome { accepted: false, reason: 0 }.encode(&mut buffer()), &[]).unwrap();
            let (length, more) = receive(&conn, &mut packet);
            hello = Hello::decode(&packet[..length]).unwrap();
            fds = more;
        }
        let secret = match &hello {
            Hello::Greeting(greeting) => greeting.secret,
            Hello::Refusal(refusal) => refusal.secret,
            Hello::Device { .. } => panic!("asked twice"),
        };
        assert_eq!(secret, self.secret);
        (conn, hello, fds)
    }

    pub(crate) fn refusal(&self) -> Refusal {
        match self.hello() {
            (_, Hello::Refusal(refusal), fds) if fds.is_empty() => refusal,
            (_, hello, fds) => panic!("{hello:?} with {} descriptors", fds.len()),
        }
    }

    /// Welcomes the next agent and serves its faults.
    pub(crate) fn welcome(&self) -> Target {
        let (conn, hello, mut fds) = self.hello();
        let Hello::Greeting(greeting) = hello else { panic!("{hello:?}") };
        assert_eq!(fds.len(), greeting.descriptors());
        let ring = SharedPages::map(fds.pop().unwrap(), greeting.ring_pages as usize).unwrap();
        let service = match fds.pop() {
            Some(uffd) => {
                let uffd = Uffd::from(uffd);
                uffd.api(FEATURES).unwrap();
                let staging = greeting.staging..greeting.staging + BATCH_PAGES as u64 * PAGE;
                uffd.register(staging, RegisterMode::WP).unwrap();
                if self.follow_forks {
                    uffd.register(greeting.beacon..greeting.beacon + PAGE, RegisterMode::MISSING).unwrap();
                }
                Service::start(uffd, Store::default(), greeting.beacon, self.births.clone())
            }
            None => {
                let service = self.births.lock().unwrap().remove(&greeting.token).expect("a token of ours");
                let staging = greeting.staging..greeting.staging + BATCH_PAGES as u64 * PAGE;
                service.uffd.register(staging, RegisterMode::WP).unwrap();
                service
            }
        };
        let brought = [service.uffd.as_fd()];
        let brought: &[BorrowedFd<'_>] = if greeting.token == 0 { &[] } else { &brought };
        conn.send(Welcome { accepted: true, reason: 0 }.encode(&mut buffer()), brought).unwrap();
        let mut target = Target { conn, greeting, ring, service, tid: 0 };
        let Answer::Started { tid } = target.answer() else { panic!("not started") };
        target.tid = tid;
        target
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        // A leftover directory in a temporary place harms nobody.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn receive(conn: &Conn, into: &mut [u8]) -> (usize, Vec<OwnedFd>) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match conn.recv(into) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "the agent is silent");
                poll(&[(conn.as_fd(), Events::IN)], Some(Duration::from_millis(100))).unwrap();
            }
            received => return received.unwrap(),
        }
    }
}

/// A process with a running agent.
pub(crate) struct Target {
    pub(crate) conn: Conn,
    pub(crate) greeting: Greeting,
    pub(crate) ring: SharedPages,
    pub(crate) service: Service,
    pub(crate) tid: u32,
}

/// The answer to an eviction.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Evicted {
    pub(crate) moved: u128,
    pub(crate) again: bool,
    pub(crate) first_errno: i32,
    pub(crate) emptied: bool,
}

impl Target {
    pub(crate) fn answer(&self) -> Answer {
        let mut buffer = buffer();
        let (length, fds) = receive(&self.conn, &mut buffer);
        assert!(length > 0, "the agent has gone");
        assert!(fds.is_empty());
        Answer::decode(&buffer[..length]).unwrap()
    }

    pub(crate) fn send(&self, order: Order<'_>) {
        self.conn.send(order.encode(&mut buffer()), &[]).unwrap();
    }

    pub(crate) fn register(&self, start: u64, pages: u64) {
        self.service.uffd.register(start..start + pages * PAGE, RegisterMode::MISSING).unwrap();
    }

    /// Evicts a batch into the store. Faults wait meanwhile, as they would for a pager's slot.
    pub(crate) fn evict(&self, runs: &[Run]) -> Evicted {
        let mut store = self.service.store.lock().unwrap();
        self.send(Order::Evict { runs: Runs::new(runs).unwrap() });
        let Answer::Evicted { moved, again, first_errno, emptied } = self.answer() else {
            panic!("no eviction")
        };
        let moved = u128::from(moved[0]) | u128::from(moved[1]) << 64;
        let pages =
            runs.iter().flat_map(|run| (0..u64::from(run.pages)).map(move |page| run.address + page * PAGE));
        for (index, address) in pages.enumerate() {
            if moved >> index & 1 == 1 {
                let mut page = [0; PAGE as usize];
                self.ring.copy_page_out(index, &mut page);
                assert!(store.insert(address, page).is_none(), "{address:#x} was out already");
            }
        }
        drop(store);
        for run in runs {
            self.service.uffd.wake(run.address..run.end()).unwrap();
        }
        Evicted { moved, again, first_errno, emptied }
    }

    /// How many batches the agent has copied, and what had moved of the last one.
    pub(crate) fn tally(&self) -> (u64, u128) {
        let word = |index| u128::from(self.ring.word(TALLY, index));
        (self.ring.word(TALLY, 0), word(1) | word(2) << 64)
    }

    /// Gives back an evicted page that nobody waits for.
    pub(crate) fn put_back(&self, address: u64) {
        let mut store = self.service.store.lock().unwrap();
        let page = store[&address];
        match self.service.uffd.copy(address, &page, false).map_err(|partial| partial.errno) {
            Ok(_) => drop(store.remove(&address)),
            // An unread event; the page stays in the store until someone faults for it.
            Err(errno) => assert_eq!(errno, libc::EAGAIN),
        }
    }

    pub(crate) fn mremap(&self, args: [u64; 5]) -> i64 {
        self.send(Order::Mremap { args });
        self.called()
    }

    pub(crate) fn madvise(&self, args: [u64; 3]) -> i64 {
        self.send(Order::Madvise { args });
        self.called()
    }

    fn called(&self) -> i64 {
        match self.answer() {
            Answer::Called { result } => result,
            answer => panic!("{answer:?}"),
        }
    }

    /// The connection ends: the agent's thread has closed it, not the process died.
    pub(crate) fn ended(&self) -> bool {
        receive(&self.conn, &mut buffer()).0 == 0
    }
}

/// A thread that answers the faults of one address space.
pub(crate) struct Service {
    pub(crate) uffd: Arc<Uffd>,
    pub(crate) store: Store,
    pub(crate) events: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    turn: Arc<Mutex<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    fn start(uffd: Uffd, store: Store, beacon: u64, births: Births) -> Service {
        let uffd = Arc::new(uffd);
        let events = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let turn = Arc::new(Mutex::new(()));
        let thread = {
            let (uffd, store, events) = (uffd.clone(), store.clone(), events.clone());
            let (stop, turn) = (stop.clone(), turn.clone());
            std::thread::spawn(move || serve(&uffd, &store, &events, &stop, &turn, beacon, &births))
        };
        Service { uffd, store, events, stop, turn, thread: Some(thread) }
    }

    /// Neither reads nor answers anything until the guard is dropped.
    pub(crate) fn pause(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap()
    }

    pub(crate) fn events(&self) -> Vec<String> {
        self.events.lock().unwrap().clone()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap();
            }
        }
    }
}

fn serve(
    uffd: &Uffd,
    store: &Store,
    events: &Mutex<Vec<String>>,
    stop: &AtomicBool,
    turn: &Mutex<()>,
    beacon: u64,
    births: &Births,
) {
    static TOKENS: AtomicU64 = AtomicU64::new(1000);
    let mut waiting: Vec<u64> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        poll(&[(uffd.as_fd(), Events::IN)], Some(Duration::from_millis(5))).unwrap();
        let _turn = turn.lock().unwrap();
        while let Ok(Some(message)) = uffd.read_message() {
            match message {
                Message::Fault { addr, .. } => waiting.push(addr & !(PAGE - 1)),
                Message::Fork { child } => {
                    let token = TOKENS.fetch_add(1, Ordering::Relaxed);
                    let mut copy = store.lock().unwrap().clone();
                    let mut page = [0; PAGE as usize];
                    page[..8].copy_from_slice(&token.to_le_bytes());
                    copy.insert(beacon, page);
                    // The lock first: once it is served, the child may greet at any moment.
                    let mut newborn = births.lock().unwrap();
                    let service = Service::start(child, Arc::new(Mutex::new(copy)), beacon, births.clone());
                    newborn.insert(token, service);
                    events.lock().unwrap().push("fork".into());
                }
                Message::Remap { from, to, len } => {
                    let mut store = store.lock().unwrap();
                    for offset in (0..len).step_by(PAGE as usize) {
                        if let Some(page) = store.remove(&(from + offset)) {
                            store.insert(to + offset, page);
                        }
                    }
                    events.lock().unwrap().push(format!("remap {from:#x} {to:#x} {len:#x}"));
                }
                Message::Remove { range } | Message::Unmap { range } => {
                    store.lock().unwrap().retain(|address, _| !range.contains(address));
                    events.lock().unwrap().push(format!("gone {:#x}..{:#x}", range.start, range.end));
                }
            }
        }
        waiting.retain(|&address| {
            let mut store = store.lock().unwrap();
            let page = store.get(&address).copied().unwrap_or([0; PAGE as usize]);
            match uffd.copy(address, &page, false).map_err(|partial| partial.errno) {
                Err(libc::EAGAIN) => return true,
                Ok(_) => drop(store.remove(&address)),
                // There already: whoever waits will find it.
                Err(libc::EEXIST) => uffd.wake(address..address + PAGE).unwrap(),
                Err(libc::ESRCH | libc::ENOENT) => {}
                Err(errno) => panic!("copy to {address:#x}: {}", io::Error::from_raw_os_error(errno)),
            }
            false
        });
    }
}

/// A program under test, killed when dropped.
pub(crate) struct Program(pub Child);

impl Program {
    pub(crate) fn start(command: &mut Command) -> Program {
        Program(command.spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends a line to its standard input.
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.0.stdin.as_mut().unwrap();
        writeln!(input, "{line}").unwrap();
        input.flush().unwrap();
    }

    /// The rest of its next line that starts with "> ".
    pub(crate) fn hear(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') {
                let output = self.0.stdout.as_mut().unwrap();
                let ready =
                    poll(&[(output.as_fd(), Events::IN)], Some(Duration::from_millis(100))).unwrap()[0];
                assert!(Instant::now() < deadline, "the program is silent after {line:?}");
                if !ready.is_empty() {
                    let mut byte = [0];
                    assert_eq!(output.read(&mut byte).unwrap(), 1, "the program has ended");
                    line.push(byte[0]);
                }
            }
            let line = String::from_utf8(line).unwrap();
            if let Some(said) = line.trim_end().strip_prefix("> ") {
                return said.to_string();
            }
        }
    }

    pub(crate) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.hear()
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> std::process::ExitStatus {
        drop(self.0.stdin.take());
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the program does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether one of its threads is an agent.
    pub(crate) fn has_agent(&self) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        tasks
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok())
            .any(|name| name == "vswap-agent\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Ended already, or ends now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
