//! The thread that performs VRRP: sockets, timers and the actions of the instances, in their order, and nothing else.
//! It waits for nobody: what may take time goes to [`super::hands`], what others should know goes out by channels that
//! are never full. It runs with real-time priority where the kernel allows it.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc as std_mpsc;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use tokio::sync::{mpsc as tokio_mpsc, oneshot};

use super::group::Group;
use super::hands::{self, Job, News};
use super::lag::Lag;
use super::memory::Memory;
use super::runner::{Handed, InstanceLook, Member, Performed, Runner};
use super::tracking::Change;
use super::words::Words;
use crate::model::Name;
use crate::net::virtual_router::HostView;

/// What is asked of the thread.
pub enum Command {
    /// These instances and groups, and no others.
    Set(Setup),
    /// The data plane's words, once there is one.
    Words(Box<dyn Words>),
    Track {
        name: Name,
        change: Change,
    },
    Ready(bool),
    Handover {
        name: Name,
        reply: oneshot::Sender<Result<Handed, String>>,
    },
    Look(oneshot::Sender<Look>),
    /// Before the agent ends: instances are left as their `shutdown` says.
    /// `release`: whatever that says, addresses go.
    Stop {
        release: bool,
        reply: oneshot::Sender<()>,
    },
}

/// Instances with what the data plane calls them, and the groups they are in.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    pub members: Vec<Member>,
    pub groups: Vec<Vec<Name>>,
}

/// What the thread tells unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub at: SystemTime,
    pub instance: Name,
    /// `master`, `mismatch`, `address-restored` …
    pub kind: String,
    pub cause: String,
    pub fields: Vec<(&'static str, String)>,
}

/// How everything stands.
#[derive(Debug, Clone)]
pub struct Look {
    pub instances: Vec<InstanceLook>,
    pub lag: Lag,
    pub recent_lag: Duration,
    /// None: the thread has real-time priority; else why not.
    pub not_real_time: Option<String>,
}

/// A handle on the thread.
#[derive(Clone)]
pub struct Driver {
    commands: mpsc::Sender<Input>,
    /// A byte in it wakes the thread; when it is full, it is awake.
    wake: Arc<UnixStream>,
}

enum Input {
    Command(Command),
    News(News),
}

/// The threads, to wait for at the end.
pub struct Threads(Vec<JoinHandle<()>>);

impl Driver {
    /// Starts the threads in the calling thread's network namespace. `memory`: the file that says what an earlier
    /// run was master of.
    ///
    /// # Errors
    /// A file that cannot be mapped, a thread that cannot be started.
    pub fn start(memory: &Path) -> Result<(Driver, tokio_mpsc::UnboundedReceiver<Report>, Threads)> {
        let memory = Memory::open(memory)?;
        let (wake, woken) = UnixStream::pair().context("make a pair of sockets")?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let wake = Arc::new(wake);
        let (commands, inbox) = mpsc::channel();
        let (jobs, todo) = tokio_mpsc::unbounded_channel();
        let (reports, receiver) = tokio_mpsc::unbounded_channel();
        let driver = Driver { commands, wake };
        let back = driver.clone();
        let hands = std::thread::Builder::new().name("lb-vrrp-hands".into()).spawn(move || {
            // Below the driver, above what the machine does otherwise: what it does is short, and a VIP waits for it.
            let _ = real_time(HANDS_PRIORITY);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let work = |runtime: tokio::runtime::Runtime| {
                runtime.block_on(hands::run(todo, move |news| back.send(Input::News(news))))
            };
            if let Err(error) = runtime.context("start a runtime").and_then(work) {
                tracing::error!("VRRP can put no address on an interface: {error:#}");
            }
        });
        let hands = hands.context("start a thread")?;
        let eyes = std::thread::Builder::new().name("lb-vrrp".into()).spawn(move || {
            let not_real_time = real_time(DRIVER_PRIORITY).err();
            if let Some(reason) = &not_real_time {
                tracing::warn!("VRRP runs without real-time priority: {reason}");
            }
            let now = Instant::now();
            Thread {
                inbox,
                woken,
                jobs,
                reports,
                memory,
                words: None,
                host: None,
                ready: false,
                runners: Vec::new(),
                groups: Vec::new(),
                lag: Lag::new(now),
                not_real_time,
                running: true,
            }
            .run();
        });
        let eyes = eyes.context("start a thread")?;
        Ok((driver, receiver, Threads(vec![eyes, hands])))
    }

    /// Hands a command over; it is taken up at once.
    pub fn order(&self, command: Command) {
        self.send(Input::Command(command));
    }

    fn send(&self, input: Input) {
        // Nobody listens once the thread has stopped, and then nobody wants to know.
        if self.commands.send(input).is_ok() {
            let _ = (&*self.wake).write(&[1]);
        }
    }

    /// How everything stands.
    pub async fn look(&self) -> Option<Look> {
        let (reply, answer) = oneshot::channel();
        self.order(Command::Look(reply));
        answer.await.ok()
    }
}

impl Threads {
    /// Waits until both have ended.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a VRRP thread panicked");
            }
        }
    }
}

struct Thread {
    inbox: mpsc::Receiver<Input>,
    woken: UnixStream,
    jobs: tokio_mpsc::UnboundedSender<Job>,
    reports: tokio_mpsc::UnboundedSender<Report>,
    memory: Memory,
    words: Option<Box<dyn Words>>,
    host: Option<HostView>,
    ready: bool,
    runners: Vec<Runner>,
    groups: Vec<(Vec<Name>, Group)>,
    lag: Lag,
    not_real_time: Option<String>,
    running: bool,
}

impl Thread {
    fn run(mut self) {
        while self.running {
            let due = self.runners.iter().filter_map(Runner::next_deadline).min();
            self.wait(due);
            let now = Instant::now();
            if let Some(due) = due.filter(|due| *due <= now) {
                self.lag.fired(now, due);
            }
            while let Ok(input) = self.inbox.try_recv() {
                self.input(input);
            }
            // What was said before the timer fired counts before the timer does.
            for index in 0..self.runners.len() {
                self.listen(index);
            }
            for index in 0..self.runners.len() {
                let now = Instant::now();
                if self.runners[index].next_deadline().is_some_and(|due| due <= now) {
                    self.feed(index, super::events::Input::Timer);
                }
            }
        }
    }

    /// Until something arrives or the time has come.
    fn wait(&self, due: Option<Instant>) {
        let mut fds = vec![PollFd::new(self.woken.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.runners.iter().filter_map(Runner::fd).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let timeout = due.map(|due| TimeSpec::from(due.saturating_duration_since(Instant::now())));
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => {
                // Nothing that poll could do comes back; timers must go on.
                tracing::error!("VRRP cannot wait: {error}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // As many as there are: they all say the same.
        while matches!((&self.woken).read(&mut [0; 64]), Ok(1..)) {}
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Command(Command::Set(setup)) => self.set(setup),
            Input::Command(Command::Words(words)) => {
                self.words = Some(words);
                for runner in &self.runners {
                    runner.write_word(self.words.as_deref());
                }
            }
            Input::Command(Command::Track { name, change }) => {
                if let Some(index) = self.index(&name) {
                    self.feed(index, super::events::Input::Track(change));
                }
            }
            Input::Command(Command::Ready(ready)) => {
                self.ready = ready;
                for index in 0..self.runners.len() {
                    self.feed(index, super::events::Input::Ready(ready));
                }
            }
            Input::Command(Command::Handover { name, reply }) => self.hand_over(&name, reply),
            Input::Command(Command::Look(reply)) => drop(reply.send(self.look())),
            Input::Command(Command::Stop { release, reply }) => self.stop(release, reply),
            Input::News(News::Host(view)) => {
                self.host = Some(view);
                for index in 0..self.runners.len() {
                    self.place(index);
                }
            }
            Input::News(News::Trouble { name, problems }) => {
                if let Some(index) = self.index(&name) {
                    self.runners[index].set_problems(problems);
                }
            }
            Input::News(News::PutBack { name, address }) => {
                let report = Report {
                    at: SystemTime::now(),
                    instance: name,
                    kind: "address-restored".into(),
                    cause: format!("{address} was taken away by somebody, and put back"),
                    fields: vec![("address", address.to_string())],
                };
                let _ = self.reports.send(report);
            }
        }
    }

    fn set(&mut self, setup: Setup) {
        let Setup { members, groups } = setup;
        let grouped = |name: &Name| groups.iter().flatten().any(|member| member == name);
        let stays = |runner: &Runner| {
            members.iter().any(|member| member.instance.name == *runner.name() && runner.can_become(member))
        };
        for index in (0..self.runners.len()).rev() {
            if !stays(&self.runners[index]) {
                self.feed(index, super::events::Input::Stop);
                self.runners.remove(index);
            }
        }
        self.memory.forget_others(|name| members.iter().any(|member| &*member.instance.name == name));
        let belongings = members.iter().map(Member::belongings).collect();
        let _ = self.jobs.send(Job::Instances(belongings));
        self.groups = groups.iter().map(|names| (names.clone(), Group::new(names.len()))).collect();
        for member in members {
            let grouped = grouped(&member.instance.name);
            match self.index(&member.instance.name) {
                Some(index) => {
                    for input in self.runners[index].configure(member, grouped) {
                        self.feed(index, input);
                    }
                    self.place(index);
                }
                None => {
                    let lease = self.memory.lease(&member.instance.name);
                    let place = self.memory.place(&member.instance.name);
                    self.runners.push(Runner::new(member, grouped, lease, place));
                    let index = self.runners.len() - 1;
                    self.feed(index, super::events::Input::Ready(self.ready));
                    self.place(index);
                }
            }
        }
        for index in 0..self.runners.len() {
            self.runners[index].write_word(self.words.as_deref());
            self.tell_group(index);
        }
    }

    /// The host changed, or an instance's place on it; one that waited for it starts.
    fn place(&mut self, index: usize) {
        let Some(host) = self.host.clone() else { return };
        for input in self.runners[index].place(&host) {
            self.feed(index, input);
        }
    }

    fn listen(&mut self, index: usize) {
        // So many at once that a flood is read as fast as it comes, so few that it cannot hold up a timer.
        for _ in 0..MESSAGES {
            match self.runners[index].receive() {
                Some(input) => self.feed(index, input),
                None => return,
            }
        }
    }

    /// Gives one input to an instance and does what it says; what its group makes of that follows.
    fn feed(&mut self, index: usize, input: super::events::Input) {
        let actions = self.runners[index].handle(Instant::now(), input);
        for action in actions {
            let performed = self.runners[index].perform(action, self.words.as_deref(), &self.memory);
            match performed {
                Performed::Done => {}
                Performed::Job(job) => drop(self.jobs.send(job)),
                Performed::Report(report) => drop(self.reports.send(report)),
            }
        }
        self.tell_group(index);
    }

    fn tell_group(&mut self, index: usize) {
        let name = self.runners[index].name().clone();
        let member = self.runners[index].member();
        let mut orders = Vec::new();
        for (names, group) in &mut self.groups {
            if let Some(at) = names.iter().position(|other| *other == name)
                && group.members()[at] != member
            {
                orders.extend(
                    group.update(at, member).into_iter().map(|(at, order)| (names[at].clone(), order)),
                );
            }
        }
        for (name, order) in orders {
            if let Some(index) = self.index(&name) {
                self.feed(index, super::events::Input::Group(order));
            }
        }
    }

    fn hand_over(&mut self, name: &Name, reply: oneshot::Sender<Result<Handed, String>>) {
        let Some(index) = self.index(name) else {
            let _ = reply.send(Err(format!("there is no VRRP instance `{name}`")));
            return;
        };
        match self.runners[index].begin_handover(reply) {
            true => self.feed(index, super::events::Input::Handover),
            false => tracing::debug!("VRRP instance {name} is not master here: nothing to hand over"),
        }
    }

    fn stop(&mut self, release: bool, reply: oneshot::Sender<()>) {
        for index in 0..self.runners.len() {
            let input = self.runners[index].stop_input(!release && self.words.is_some(), PAUSE);
            self.feed(index, input);
        }
        // The addresses of those that leave are gone before the process is.
        let (done, wait) = std_mpsc::sync_channel(1);
        if self.jobs.send(Job::Done(done)).is_ok() {
            let _ = wait.recv_timeout(RELEASE_WAIT);
        }
        self.running = false;
        let _ = reply.send(());
    }

    fn look(&mut self) -> Look {
        let now = Instant::now();
        Look {
            instances: self.runners.iter().map(|runner| runner.look(now, self.words.as_deref())).collect(),
            lag: self.lag.clone(),
            recent_lag: self.lag.recent(now),
            not_real_time: self.not_real_time.clone(),
        }
    }

    fn index(&self, name: &Name) -> Option<usize> {
        self.runners.iter().position(|runner| runner.name() == name)
    }
}

/// Gives the calling thread the first-in-first-out class; what it starts does not inherit it.
fn real_time(priority: i32) -> Result<(), String> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the structure lives during the call; 0 is the calling thread.
    match unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters)
    } {
        0 => Ok(()),
        _ => Err(format!("{} (CAP_SYS_NICE, or RLIMIT_RTPRIO)", std::io::Error::last_os_error())),
    }
}

/// Of 1 to 99. Above what runs by itself, below the kernel's own threads for interrupts (50).
const DRIVER_PRIORITY: i32 = 40;
const HANDS_PRIORITY: i32 = 30;
/// Messages of one instance that are read in a row.
const MESSAGES: usize = 64;
/// The silence of a restart that is planned. A successor speaks before it loads any program, a fraction of a second
/// after it is started; a machine that does ten other things at once takes seconds for that.
const PAUSE: Duration = Duration::from_secs(15);
/// How long a stop waits until addresses are gone.
const RELEASE_WAIT: Duration = Duration::from_secs(2);
