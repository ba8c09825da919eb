//! A thread that makes system calls for us, and gets back what it was doing.

use std::io;
use std::ptr::null_mut;

use super::{CODE_64, Registers, Resume, Stop, Tracee, returned, traced};
use crate::process::{self, Remote};

/// What a thread was doing when it was stopped with [`Stop::Interrupted`], to be put back whatever happens.
///
/// All its signals are blocked meanwhile; the call that was interrupted, if one was, is restarted by the kernel as after
/// any stop. If we are killed before, so is the process: it must not run on with our registers.
#[derive(Debug)]
pub struct Borrowed {
    tracee: Tracee,
    registers: Registers,
    mask: u64,
    /// The restartable sequence the thread is in: where that is kept, and what was there. The kernel forgets it when it
    /// finds the thread elsewhere.
    sequence: Option<(u64, [u8; 8])>,
    returned: bool,
}

impl Borrowed {
    /// Takes over a thread that stands still interrupted.
    ///
    /// # Errors
    ///
    /// `ENOEXEC`: it runs 32-bit code at the moment; `EOPNOTSUPP`: its system calls may come back to it as signals; those of
    /// tracing. It is let go then.
    pub fn new(tracee: Tracee) -> io::Result<Self> {
        let registers = tracee.registers()?;
        if registers.cs != CODE_64 {
            return Err(io::Error::from_raw_os_error(libc::ENOEXEC));
        }
        if tracee.dispatches_calls()? {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        let mut sequence = None;
        if let Some(place) = tracee.rseq_place()? {
            let mut address = [0; 8];
            // Where it cannot be read the kernel could not read it either.
            if process::read_memory(tracee.tid, place, &mut address).is_ok() && address != [0; 8] {
                sequence = Some((place, address));
            }
        }
        let mask = tracee.signal_mask()?;
        tracee.bind()?;
        tracee.set_signal_mask(u64::MAX)?;
        Ok(Self { tracee, registers, mask, sequence, returned: false })
    }

    /// See [`Tracee::call`].
    ///
    /// # Errors
    ///
    /// Those of tracing.
    pub fn call(&self, gadget: u64, number: i64, args: [u64; 6]) -> io::Result<i64> {
        self.tracee.call(&self.registers, gadget, number, args)
    }

    /// Has the thread make another one, that shares memory, signal handlers and nothing else with it, blocks all signals,
    /// and stands still where its first instruction would be, behind the one at `gadget`; it is traced.
    ///
    /// # Errors
    ///
    /// Those of tracing, and those of the call.
    pub fn make_thread(&self, gadget: u64, stack_top: u64) -> io::Result<Tracee> {
        let flags = libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
        let args = [flags as u64, stack_top, 0, 0, 0, 0];
        let mut made = 0;
        let value = self.tracee.call_noting(&self.registers, gadget, libc::SYS_clone, args, &mut made)?;
        returned(value).map_err(io::Error::from_raw_os_error)?;
        Ok(Tracee::noted(made, self.tracee.process, &mut traced()))
    }

    /// Puts everything back and lets the thread go.
    ///
    /// # Errors
    ///
    /// Those of tracing: it was killed.
    pub fn give_back(mut self) -> io::Result<()> {
        self.put_back()
    }

    fn put_back(&mut self) -> io::Result<()> {
        self.returned = true;
        // An interrupted call is restarted only on the way out of this kind of stop.
        self.tracee.interrupt()?;
        let mut signal = 0;
        loop {
            self.tracee.resume(Resume::Run(signal))?;
            signal = match self.tracee.wait_for_own()? {
                Stop::Interrupted | Stop::Group => break,
                stop => {
                    // Which took the place of the one that was asked for.
                    self.tracee.interrupt()?;
                    if let Stop::Signal(signal) = stop { signal } else { 0 }
                }
            };
        }
        self.tracee.set_registers(&self.registers)?;
        self.tracee.set_signal_mask(self.mask)?;
        if let Some((place, address)) = &self.sequence {
            let parts = [Remote { address: *place, bytes: address }];
            process::write_memory(self.tracee.tid, &parts)?;
        }
        self.tracee.request(libc::PTRACE_DETACH, 0, null_mut())
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if !self.returned {
            // It fails when it was killed; then nothing is left to put back.
            let _ = self.put_back();
        }
    }
}
