//! A filter that a program is about to install, stopped at the gate. One that lets every call of an agent's pass
//! concerns nobody. After any other no child by fork sets an agent up, nor does what the process executes (see `Entrance::renounce`); and if the
//! filter is for all threads, the agent leaves before the call goes on. What was evicted is served as before.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use vswap_sys::seccomp::{Notification, Reply};

use super::super::alone::{self, Why};
use super::super::tenant::{Equipment, Note};
use super::GateKeeper;
use super::judge::{is_harmless, read};
use super::late::{For, Waiting, Whose};

/// What is known of a filter: nothing yet; or whether an agent can live with it.
pub(super) type Judgement = Arc<Mutex<Option<bool>>>;

impl GateKeeper {
    /// A thread of its own looks at the filter: the memory that it lies in may be away.
    pub(super) fn pass_filter(&mut self, call: Notification) {
        let judgement = Judgement::default();
        let (entrance, told) = (self.entrance.clone(), judgement.clone());
        let look = move || {
            // What cannot be read the kernel will not install; if it is only we who may not, an agent would not be safe.
            let installs = call.installs();
            let harmless = match read(call.tid, &installs) {
                Ok(program) => is_harmless(&program),
                Err(error) => error.raw_os_error() == Some(libc::EFAULT),
            };
            if !harmless {
                entrance.renounce(call.tid, installs.all_threads);
            }
            *told.lock() = Some(harmless);
        };
        let builder = std::thread::Builder::new().name(format!("filter-{}", call.tid)).stack_size(64 << 10);
        if builder.spawn(look).is_err() {
            *judgement.lock() = Some(false);
        }
        self.waiting.push(Waiting::new(call, For::Judgement(judgement)));
    }

    /// No agent could live with the filter; one that is on its way has to come first.
    pub(super) fn pass_harmful(&mut self, call: Notification) {
        if call.installs().all_threads && self.is_being_entered(call.tid) {
            return self.waiting.push(Waiting::new(call, For::Agent));
        }
        self.pass_when_left(call);
    }

    /// Has the agent leave, if the filter would be its, too.
    pub(super) fn pass_when_left(&mut self, call: Notification) {
        let caller = self.process_of(call.tid).ok();
        if call.installs().all_threads
            && let Whose::Of(tenant) = self.tenant_of(call.tid)
            // Not one that is between vfork and exec: threads are those of a process.
            && caller == Some(tenant.pid.load(Relaxed))
        {
            let idle = tenant.idle.lock();
            let errand = self.errands.iter().find(|errand| errand.tenant.id == tenant.id);
            match idle.as_ref().or(errand.map(|errand| &errand.equipment)) {
                Some(Equipment { agent: Some(agent), .. }) => {
                    if alone::tell(agent, tenant.pid.load(Relaxed), Why::Filter) {
                        return self.waiting.push(Waiting::new(call, For::Left(agent.conn.clone())));
                    }
                }
                None if tenant.active.load(Relaxed) => {
                    return tenant.tell(Note::Filter(call));
                }
                Some(_) | None => {}
            }
        }
        self.reply(&call, Reply::Continue);
    }
}
