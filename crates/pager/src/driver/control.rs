//! The thread at the control socket: answers `vswap status`, carries out `vswap reclaim`.
//!
//! Clients are not trusted to be quick, to read, or to end: none is waited for, each has bounds on what it may send, on
//! what is kept for it, and on how long. Who is asked of is decided by the kernel's word on the peer: our own user, or
//! root. Nothing here is asked of a server thread; so it answers also while the program is stopped.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vswap_sys::poll::{Events, poll};
use vswap_sys::process;
use vswap_sys::socket::{Conn, Listener};

use super::governor::Peaks;
use super::reclaim::{self, Reclaim};
use super::shared::Shared;
use super::status::status;
use crate::{Identity, Reply, Request};

/// Connections at one time; one more closes the one that has been idle longest.
const CLIENTS: usize = 16;
/// A client that neither asks nor reads for so long is hung up on.
const PATIENCE: Duration = Duration::from_secs(5);
/// A request is not larger.
const REQUEST: usize = 4096;
/// Bytes of an answer in one packet, so that any socket buffer takes it.
const PACKET: usize = 16 << 10;
/// How often a wish for pages is looked after.
const TICK: Duration = Duration::from_millis(10);
/// How often its owner hears of it.
const TOLD_EVERY: Duration = Duration::from_millis(500);

/// One connection.
struct Client {
    conn: Conn,
    /// When it last did something that it should.
    active: Instant,
    /// What is still to be sent to it.
    out: VecDeque<u8>,
    /// The connection ends when all is sent.
    answered: bool,
    wish: Option<Wished>,
    /// When it heard last of what it wished.
    told: Instant,
}

/// What a client wishes.
enum Wished {
    /// Its turn has not come.
    Waiting(u64),
    Running(Reclaim),
}

/// The control socket.
pub struct Control {
    pub shared: Arc<Shared>,
    pub peaks: Arc<Mutex<Peaks>>,
    pub listener: Listener,
    pub identity: Identity,
}

impl Control {
    /// Serves until the pager's end.
    pub fn run(self) {
        let mut clients: Vec<Client> = Vec::new();
        loop {
            self.wait(&mut clients);
            for client in &mut clients {
                self.hear(client);
            }
            self.follow_wishes(&mut clients);
            clients.retain_mut(|client| {
                let goes_on = client.send();
                if !goes_on && matches!(client.wish, Some(Wished::Running(_))) {
                    reclaim::end(&self.shared);
                }
                goes_on
            });
        }
    }

    fn wait(&self, clients: &mut Vec<Client>) {
        let busy = clients.iter().any(|client| client.wish.is_some());
        let timeout = if busy {
            Some(TICK)
        } else if clients.is_empty() {
            None
        } else {
            Some(Duration::from_secs(1))
        };
        let mut wanted = vec![(self.listener.as_fd(), Events::IN)];
        wanted.extend(clients.iter().map(|client| {
            let events = if client.out.is_empty() { Events::IN } else { Events::IN | Events::OUT };
            (client.conn.as_fd(), events)
        }));
        let ready = poll(&wanted, timeout).unwrap_or_default();
        if ready.first().is_none_or(|events| events.is_empty()) {
            return;
        }
        match self.listener.accept_nonblocking() {
            Ok(Some(conn)) if is_allowed(&conn) => {
                if clients.len() == CLIENTS
                    && let Some(idle) = (0..CLIENTS).min_by_key(|&index| clients[index].active)
                {
                    let gone = clients.swap_remove(idle);
                    if matches!(gone.wish, Some(Wished::Running(_))) {
                        reclaim::end(&self.shared);
                    }
                }
                clients.push(Client {
                    conn,
                    active: Instant::now(),
                    out: VecDeque::new(),
                    answered: false,
                    wish: None,
                    told: Instant::now(),
                });
            }
            Ok(_) => {}
            // No descriptor is free: it stays in the queue, and must not keep us running.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }

    /// What a client says.
    fn hear(&self, client: &mut Client) {
        let mut buffer = [0; REQUEST];
        let request = match client.conn.recv(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            // The end, or too much: no more is owed to it.
            Ok((0, _)) | Err(_) => return client.hang_up(&self.shared),
            Ok((length, _)) => serde_json::from_slice(&buffer[..length]),
        };
        if client.answered || client.wish.is_some() {
            return client.hang_up(&self.shared);
        }
        client.active = Instant::now();
        match request {
            Ok(Request::Status) => {
                let status = status(&self.shared, &self.peaks, &self.identity);
                client.finish(&Reply::Status(Box::new(status)));
            }
            Ok(Request::Reclaim { bytes }) => client.wish = Some(Wished::Waiting(bytes)),
            Err(error) => client.finish(&Reply::Refused(format!("not a request: {error}"))),
        }
    }

    /// One wish at a time is fulfilled, the oldest first.
    fn follow_wishes(&self, clients: &mut [Client]) {
        let running = clients.iter().position(|client| matches!(client.wish, Some(Wished::Running(_))));
        let waiting = clients.iter().position(|client| client.wish.is_some());
        let Some(client) = running.or(waiting).and_then(|index| clients.get_mut(index)) else { return };
        match &mut client.wish {
            Some(Wished::Running(reclaim)) => {
                if let Some(result) = reclaim.step(&self.shared, &self.peaks) {
                    client.wish = None;
                    client.finish(&Reply::Reclaimed(result));
                }
            }
            Some(Wished::Waiting(bytes)) => {
                let reclaim = Reclaim::begin(*bytes, &self.shared, &self.peaks);
                client.wish = Some(Wished::Running(reclaim));
            }
            None => {}
        }
        for client in clients.iter_mut().filter(|client| client.out.is_empty()) {
            let evicted = match &client.wish {
                _ if client.told.elapsed() < TOLD_EVERY => continue,
                Some(Wished::Running(reclaim)) => reclaim.evicted(),
                Some(Wished::Waiting(_)) => 0,
                None => continue,
            };
            client.told = Instant::now();
            client.say(&Reply::Reclaiming(evicted));
        }
    }
}

/// Our own user, or root.
fn is_allowed(conn: &Conn) -> bool {
    conn.peer_cred().is_ok_and(|peer| peer.uid == 0 || peer.uid == process::effective_uid())
}

impl Client {
    fn say(&mut self, reply: &Reply) {
        if let Ok(mut line) = serde_json::to_vec(reply) {
            line.push(b'\n');
            self.out.extend(line);
        }
    }

    fn finish(&mut self, reply: &Reply) {
        self.say(reply);
        self.answered = true;
    }

    fn hang_up(&mut self, shared: &Shared) {
        if matches!(self.wish.take(), Some(Wished::Running(_))) {
            reclaim::end(shared);
        }
        self.out.clear();
        self.answered = true;
    }

    /// Sends what there is room for; false when the connection is over.
    fn send(&mut self) -> bool {
        while !self.out.is_empty() {
            let packet = &self.out.make_contiguous()[..];
            let packet = &packet[..packet.len().min(PACKET)];
            match self.conn.send(packet, &[]) {
                Ok(()) => {
                    let sent = packet.len();
                    self.out.drain(..sent);
                    self.active = Instant::now();
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => return false,
            }
        }
        let over = self.answered && self.out.is_empty();
        // The owner of a wish waits for us, not we for it.
        !over && (self.wish.is_some() || self.active.elapsed() < PATIENCE)
    }
}
