//! Kills, upgrades and applies at random moments, and what must hold after each.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use lb_tests::{Agent, Namespace, Topology, agent, http, version};

use super::dice::Dice;
use super::newcomers::{self, Newcomers};
use super::services::{Family, METHODS, Method, WEIGHTS, Weights, manifests};

/// The longest quiet time before an event, and without an agent.
const QUIET: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// SIGKILL, and the same version again.
    Kill,
    /// SIGTERM, and another version.
    Upgrade,
}

#[derive(Clone, Copy, Debug)]
pub struct Event {
    kind: Kind,
    inside_apply: bool,
}

/// The XDP program on the director's eth0.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attached {
    /// Given by the kernel to each loaded program.
    pub id: u64,
    /// A hash of the instructions.
    pub tag: String,
}

/// The program on eth0, if there is one.
pub fn attached(host: &Namespace) -> Option<Attached> {
    let text = host.output("ip", &["-d", "-j", "link", "show", "dev", "eth0"]);
    let links: serde_json::Value = serde_json::from_str(&text).expect("ip writes JSON");
    let program = &links[0]["xdp"]["prog"];
    Some(Attached { id: program["id"].as_u64()?, tag: program["tag"].as_str()?.to_owned() })
}

struct Version {
    binary: PathBuf,
    tag: String,
}

/// The agent under torment.
pub struct Events<'a> {
    agent: Agent<'a>,
    topology: &'a Topology,
    family: Family,
    dice: Dice,
    /// Two versions; the first one runs.
    versions: [Version; 2],
    program: Attached,
    weights: Weights,
    /// How long an `apply` takes when nothing comes in between.
    apply_takes: Duration,
    starts: Vec<Duration>,
    acknowledged: usize,
    interrupted: usize,
}

impl<'a> Events<'a> {
    /// Takes over a running agent, gives it its services, and makes another version of it.
    #[track_caller]
    pub fn begin(agent: Agent<'a>, topology: &'a Topology, family: Family, dice: Dice) -> Events<'a> {
        let host = &topology.director().namespace;
        let other = host.directory().join("lb-agent");
        version::make(&agent::binary(), &other);
        let weights = WEIGHTS[0];
        agent.apply(&manifests(topology, family, weights));
        let program = attached(host).expect("the agent has attached its program");
        let versions = [
            Version { binary: agent::binary(), tag: program.tag.clone() },
            // Known when it runs for the first time.
            Version { binary: other, tag: String::new() },
        ];
        let mut events = Events {
            agent,
            topology,
            family,
            dice,
            versions,
            program,
            weights,
            apply_takes: Duration::ZERO,
            starts: Vec::new(),
            acknowledged: 0,
            interrupted: 0,
        };
        let start = Instant::now();
        events.apply(WEIGHTS[1]);
        events.apply_takes = start.elapsed();
        events.upgrade();
        events.assert_program(Kind::Upgrade);
        events
    }

    /// `count` kills and `count` upgrades, half of each inside an `apply`, in random order.
    pub fn shuffled(&mut self, count: usize) -> Vec<Event> {
        let mut events: Vec<Event> = [Kind::Kill, Kind::Upgrade]
            .into_iter()
            .flat_map(|kind| (0..count).map(move |n| Event { kind, inside_apply: n % 2 == 0 }))
            .collect();
        self.dice.shuffle(&mut events);
        events
    }

    /// Lets one event happen at a random moment, and looks whether everything is as it should be.
    #[track_caller]
    pub fn happen(&mut self, event: Event, newcomers: &Newcomers) {
        self.dice.sleep(QUIET);
        let apply = event.inside_apply.then(|| {
            let wanted = self.other_weights();
            let child = self.begin_apply(wanted);
            self.dice.sleep(self.apply_takes.mul_f64(1.2));
            (wanted, child)
        });
        match event.kind {
            Kind::Kill => self.agent.kill9(),
            Kind::Upgrade => {
                let status = self.agent.sigterm();
                assert!(status.success(), "SIGTERM ended it with {status}: {}", self.agent.log());
            }
        }
        let apply = apply.map(|(wanted, mut child)| {
            let acknowledged = child.wait().expect("wait for a child of ours").success();
            (wanted, acknowledged)
        });
        self.dice.sleep(QUIET);
        match event.kind {
            Kind::Kill => self.start(),
            Kind::Upgrade => self.upgrade(),
        }
        self.assert_program(event.kind);
        let _nobody_else = newcomers.hold();
        match apply {
            None => {}
            Some((wanted, true)) => {
                // What was acknowledged must have been kept.
                self.acknowledged += 1;
                self.weights = wanted;
            }
            Some((wanted, false)) => {
                self.interrupted += 1;
                let before = self.weights;
                if self.deviation(before).is_some() {
                    self.weights = wanted;
                    if let Some(neither) = self.deviation(wanted) {
                        panic!("neither {before:?} nor {wanted:?} after {event:?}: {neither}");
                    }
                }
                self.apply(wanted);
            }
        }
        self.assert_as_applied();
    }

    /// An `apply` that nothing interrupts.
    #[track_caller]
    pub fn apply_another(&mut self) {
        let wanted = self.other_weights();
        self.apply(wanted);
    }

    /// Panics unless new connections by every method are shared out as the last `apply` said.
    #[track_caller]
    pub fn assert_as_applied(&self) {
        if let Some(deviation) = self.deviation(self.weights) {
            panic!("{:?}: {deviation}\n{}\n{}", self.weights, self.counters(), self.agent.log());
        }
    }

    fn other_weights(&mut self) -> Weights {
        let others: Vec<Weights> = WEIGHTS.into_iter().filter(|other| *other != self.weights).collect();
        others[self.dice.below(others.len())]
    }

    /// What happened so far, for a reader of the test's output.
    pub fn summary(&self) -> String {
        let count = self.starts.len();
        let longest = self.starts.iter().max().copied().unwrap_or_default();
        let mean = self.starts.iter().sum::<Duration>() / count.max(1) as u32;
        let Events { acknowledged, interrupted, apply_takes, .. } = self;
        format!(
            "so far {count} starts of {mean:.0?}, at most {longest:.0?}; of the applies with an event inside \
             {acknowledged} were acknowledged and {interrupted} were not; one alone takes {apply_takes:.0?}"
        )
    }

    /// Where every frame went, as the agent says.
    pub fn counters(&self) -> String {
        self.agent.cli(&["get", "counters"]).stdout
    }

    /// Gives the agent back.
    pub fn end(self) -> Agent<'a> {
        self.agent
    }

    fn start(&mut self) {
        let start = Instant::now();
        self.agent.launch();
        // As fast as on a machine that does nothing else: the test is long enough.
        // SAFETY: no memory is involved. Threads that it starts later are as its first one.
        unsafe { libc::setpriority(libc::PRIO_PROCESS, self.agent.process().pid(), -5) };
        self.agent.wait_until_ready();
        self.starts.push(start.elapsed());
    }

    fn upgrade(&mut self) {
        self.versions.swap(0, 1);
        self.agent.use_binary(&self.versions[0].binary);
        self.start();
    }

    /// Each start loads the program anew; only an upgrade changes what it is.
    #[track_caller]
    fn assert_program(&mut self, kind: Kind) {
        let host = &self.topology.director().namespace;
        let now = attached(host).expect("a program is attached after a start");
        assert_ne!(now.id, self.program.id, "the start did not replace the program");
        match kind {
            Kind::Kill => assert_eq!(now.tag, self.program.tag, "the same version is another program"),
            Kind::Upgrade => assert_ne!(now.tag, self.program.tag, "another version is the same program"),
        }
        let known = &mut self.versions[0].tag;
        if known.is_empty() {
            known.clone_from(&now.tag);
        }
        assert_eq!(now.tag, *known, "not the version that was started");
        self.program = now;
    }

    #[track_caller]
    fn apply(&mut self, weights: Weights) {
        self.agent.apply(&manifests(self.topology, self.family, weights));
        self.weights = weights;
    }

    fn begin_apply(&self, weights: Weights) -> Child {
        let mut command = self.agent.command(&["apply", "-f", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("start lb-agent apply");
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // It fits the pipe; a command that ended already reads nothing.
        let _ = stdin.write_all(manifests(self.topology, self.family, weights).as_bytes());
        child
    }

    /// Whether new connections by every method are shared out as the weights say; what is not so, by the first method
    /// with which it is not. Asked again once: a SYN that had to be sent again may have taken two turns of the cursor, but a wrong sequence is wrong every time.
    fn deviation(&self, weights: Weights) -> Option<String> {
        METHODS.iter().find_map(|method| {
            self.deviation_of(method, weights).and_then(|_| self.deviation_of(method, weights))
        })
    }

    fn deviation_of(&self, method: &Method, weights: Weights) -> Option<String> {
        let client = &self.topology.client().namespace;
        let count = weights.round();
        let (tcp, udp) = (method.tcp(self.topology, self.family), method.udp(self.topology, self.family));
        let pages = http::get_in_turn(client, &http::url(tcp, "/"), count);
        let pages = pages.map(|pages| http::shares(&pages));
        let answers: Result<Vec<String>, String> =
            client.run(|| (0..count).map(|_| newcomers::ask(udp)).collect());
        let answers = answers.map(|names| {
            names.into_iter().fold(std::collections::BTreeMap::new(), |mut shares, name| {
                *shares.entry(name).or_insert(0) += 1;
                shares
            })
        });
        let wanted = Ok(weights.shares());
        (pages != wanted || answers != wanted)
            .then(|| format!("{}: TCP {pages:?}, UDP {answers:?}", method.name))
    }
}
