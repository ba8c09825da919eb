//! What the pager's process tells the front: one JSON object a line over a socket pair.
//!
//! The front holds one end, the pager and the guardian (who share their descriptors) the other. So the front sees the
//! end of the stream when both are gone, and the pager sees it when the front is.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vswap_pager::Summary;

/// The front may be stopped, or slow at a terminal; the pager has processes to serve and gives up on it then.
const PATIENCE: Duration = Duration::from_secs(2);

/// A message to the front.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    /// CMD runs.
    Started {
        /// Its process id.
        pid: u32,
        /// Things the user should know.
        warnings: Vec<String>,
    },
    /// CMD could not be started.
    NotStarted {
        /// The exit status for it.
        code: u8,
        /// Why.
        text: String,
    },
    /// A signal has stopped CMD.
    Stopped {
        /// Its number.
        signal: i32,
    },
    /// CMD has ended.
    Ended {
        /// Its wait status.
        status: i32,
        /// The figures so far.
        summary: Box<Summary>,
        /// Processes of the tree that go on, paged.
        others: u64,
    },
    /// The last process of the tree has ended.
    Done {
        /// All figures.
        summary: Box<Summary>,
    },
    /// The pager cannot go on; the tree is being killed.
    Fatal {
        /// Why.
        text: String,
    },
    /// From the guardian: the pager's process died without a word; the tree has been killed.
    PagerDied {
        /// How, in words.
        how: String,
    },
}

/// The pager's and the guardian's end.
#[derive(Debug)]
pub(crate) struct Sender {
    stream: UnixStream,
    /// Held for a whole line: a long one is written in parts.
    line: Mutex<()>,
}

impl Sender {
    /// Sends `message`. Failures are ignored: without a front there is nobody to tell.
    pub(crate) fn send(&self, message: &Message) {
        let mut line = serde_json::to_vec(message).expect("plain data");
        line.push(b'\n');
        let _whole = self.line.lock();
        let _ = (&self.stream).write_all(&line);
    }

    /// Waits until the front has gone.
    pub(crate) fn wait_for_end(&self) {
        let mut byte = [0];
        loop {
            match (&self.stream).read(&mut byte) {
                Ok(0) => return,
                Err(error) if error.kind() != ErrorKind::Interrupted => return,
                // The front says nothing.
                _ => {}
            }
        }
    }
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The front's end.
#[derive(Debug)]
pub(crate) struct Receiver {
    stream: UnixStream,
    pending: Vec<u8>,
    ended: bool,
}

impl Receiver {
    /// Takes what has arrived, without waiting.
    ///
    /// # Errors
    ///
    /// Those of reading, and a message that is none of ours.
    pub(crate) fn receive(&mut self) -> io::Result<Vec<Message>> {
        let mut chunk = [0; 16 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(count) => self.pending.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    self.ended = true;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let mut messages = Vec::new();
        while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
            messages.push(serde_json::from_slice(&self.pending[..end]).map_err(io::Error::other)?);
            self.pending.drain(..=end);
        }
        Ok(messages)
    }

    /// Pager and guardian are gone.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Both ends, close-on-exec.
///
/// # Errors
///
/// `EMFILE` and the like.
pub(crate) fn channel() -> io::Result<(Sender, Receiver)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_write_timeout(Some(PATIENCE))?;
    Ok((
        Sender { stream: theirs, line: Mutex::new(()) },
        Receiver { stream: ours, pending: Vec::new(), ended: false },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_whole_and_the_end_is_seen() {
        let (sender, mut receiver) = channel().unwrap();
        assert!(receiver.receive().unwrap().is_empty());
        sender.send(&Message::Started { pid: 7, warnings: vec!["a\nb".into()] });
        let summary = Box::new(Summary { warnings: vec!["x".repeat(40_000)], ..Summary::default() });
        sender.send(&Message::Ended { status: 256, summary, others: 2 });
        let messages = receiver.receive().unwrap();
        assert!(matches!(&messages[0], Message::Started { pid: 7, warnings } if warnings[0] == "a\nb"));
        assert!(matches!(&messages[1], Message::Ended { status: 256, others: 2, summary }
            if summary.warnings[0].len() == 40_000));
        assert!(!receiver.ended());
        drop(sender);
        assert!(receiver.receive().unwrap().is_empty() && receiver.ended());
    }

    #[test]
    fn a_front_that_has_gone_disturbs_nobody() {
        let (sender, receiver) = channel().unwrap();
        drop(receiver);
        sender.wait_for_end();
        sender.send(&Message::Fatal { text: "x".into() });
    }
}
