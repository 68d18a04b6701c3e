//! Runs the loaded program on a frame (BPF_PROG_TEST_RUN): packet cases without an interface.

use super::{Dataplane, Error, bpf};
use aya::programs::{TestRun as _, TestRunOptions};
use lb_common::maps::programs;
use std::{os::fd::BorrowedFd, time::Duration};

/// What the program said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Aborted,
    Drop,
    Pass,
    Tx,
    Redirect,
}

/// What became of a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub action: Action,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

impl Dataplane {
    /// Runs the entry program once. The kernel refuses frames below 14 bytes, and those that do not fit a page
    /// with their headroom.
    pub fn test_run(&self, frame: &[u8]) -> Result<Outcome, Error> {
        let mut out = vec![0; frame.len() + 256];
        let result = self.run(programs::MAIN, frame, Some(&mut out), 1)?;
        out.truncate(result.1 as usize);
        Ok(Outcome { action: action(result.0)?, frame: out })
    }

    /// Runs the program at the far end of the prober's pair once.
    pub fn test_run_probe(&self, frame: &[u8]) -> Result<Outcome, Error> {
        let mut out = vec![0; frame.len() + 256];
        let result = self.run(programs::PROBE_SENT, frame, Some(&mut out), 1)?;
        out.truncate(result.1 as usize);
        Ok(Outcome { action: action(result.0)?, frame: out })
    }

    /// Runs the entry program `repeat` times on what the round before left of the frame (the kernel restores neither bytes nor
    /// a moved start). Returns the last action and the mean time of a round.
    pub fn test_run_repeated(&self, frame: &[u8], repeat: u32) -> Result<(Action, Duration), Error> {
        let result = self.run(programs::MAIN, frame, None, repeat)?;
        Ok((action(result.0)?, result.2))
    }

    /// The entry program, for callers that run it by other means.
    pub fn main_program(&self) -> Result<BorrowedFd<'_>, Error> {
        use std::os::fd::AsFd as _;
        let name = programs::MAIN;
        Ok(self.program(name)?.fd().map_err(|e| Error::Program { name, reason: Box::new(e) })?.as_fd())
    }

    /// Runs the egress program once on a frame that the host would send. Whether it may leave.
    pub fn test_run_egress(&self, frame: &[u8]) -> Result<bool, Error> {
        use std::os::fd::AsFd as _;
        let name = programs::EGRESS;
        let failed = |e| Error::Program { name, reason: Box::new(e) };
        let program = self.ebpf.program(name).ok_or(Error::Missing(name))?;
        let program: &aya::programs::SchedClassifier = program.try_into().map_err(failed)?;
        let mut frame = frame.to_vec();
        let result = bpf::run(program.fd().map_err(failed)?.as_fd(), &mut frame);
        match result.map_err(Error::os("run the egress program"))? as i32 {
            TC_ACT_UNSPEC => Ok(true),
            TC_ACT_SHOT => Ok(false),
            other => Err(Error::Refused(format!("the egress program returned {other}"))),
        }
    }

    fn run(
        &self,
        name: &'static str,
        frame: &[u8],
        out: Option<&mut [u8]>,
        repeat: u32,
    ) -> Result<(u32, u32, Duration), Error> {
        let options =
            TestRunOptions { data_in: Some(frame), data_out: out, repeat, ..TestRunOptions::default() };
        let result = self
            .program(name)?
            .test_run(options)
            .map_err(|e| Error::Program { name, reason: Box::new(e) })?;
        Ok((result.return_value, result.data_size_out, result.duration))
    }
}

/// The next program decides.
const TC_ACT_UNSPEC: i32 = -1;
const TC_ACT_SHOT: i32 = 2;

fn action(value: u32) -> Result<Action, Error> {
    Ok(match value {
        0 => Action::Aborted,
        1 => Action::Drop,
        2 => Action::Pass,
        3 => Action::Tx,
        4 => Action::Redirect,
        other => return Err(Error::Refused(format!("the program returned {other}, which is no XDP action"))),
    })
}
