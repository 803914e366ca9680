//! Which worker runs, and what becomes of the mount.
//!
//! The supervisor never looks into the mount: while no worker runs, whoever does that waits.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fsd::handover;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::channel::{self, Channel, Order, Report};
use super::mounting;
use super::request::{Asker, Requests};
use super::{RESUME_FLAG, WORKER_FLAG};
use crate::cli::MountArgs;
use crate::mount::{self, Signals, Wanted};
use crate::options::MountOptions;
use crate::{daemon, mountpoint};

/// Name of workers in the list of processes.
const WORKER_NAME: &str = "fsd-worker";
/// A worker that has served for so long was a good one: its end is not one of a row of failures.
const GOOD_TIME: Duration = Duration::from_secs(2);
/// So many failures in a row, and the mount is given up.
const FAILURES_MAX: u32 = 8;
/// Pause after the second failure in a row; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// How long the worker of a new program may take until it has the tree.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a worker may take to end, once the mount is off, beyond its own time for draining.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How often it is looked whether a process has ended that is about to.
const LOOK: Duration = Duration::from_millis(5);
/// How often workers that are gone are looked after.
const REAP: Duration = Duration::from_millis(500);

/// How far a worker is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It takes a copy of the tree.
    Starting,
    /// It has it, and waits for its turn.
    Prepared,
    /// It was given the mount.
    Ordered,
    /// It serves since then.
    Serving(Instant),
}

/// A worker.
struct Worker {
    child: Child,
    channel: Channel,
    phase: Phase,
    /// The program that it runs.
    program: Program,
}

/// A program that stays the same file though another one may have its name by now.
#[derive(Debug)]
struct Program(File);

/// A worker that is to take the place of another.
struct Candidate {
    worker: Worker,
    until: Instant,
    asker: Option<Asker>,
    /// The old one was told to go.
    chosen: bool,
}

/// See the [module](self).
struct Supervisor<'a> {
    args: &'a MountArgs,
    options: &'a MountOptions,
    path: PathBuf,
    /// What mountinfo shows as the source.
    source: String,
    arguments: Vec<std::ffi::OsString>,
    /// Where the program is, for an upgrade.
    place: PathBuf,
    program: Program,
    device: Option<OwnedFd>,
    journal: OwnedFd,
    generation: u32,
    resends: bool,
    /// The mount was usable once.
    served: bool,
    worker: Option<Worker>,
    candidate: Option<Candidate>,
    /// Who asked for the upgrade that the worker of now is.
    asker: Option<Asker>,
    /// When the next one is started, if none runs.
    start_at: Instant,
    failures: u32,
    /// Workers that are gone, or nearly.
    gone: Vec<Child>,
    requests: Option<Requests>,
}

/// How it goes on.
enum Next {
    Stay,
    End(ExitCode),
}

/// Mounts and sees to it that the mount is served, until it is unmounted.
pub fn run(args: &MountArgs, options: &MountOptions) -> anyhow::Result<ExitCode> {
    let settings = mount::settings(args, options)?;
    mount::check_host(options)?;
    let path = mount::prepare(&args.mountpoint)?;
    let arguments = arguments(args, options, &settings, &path)?;
    let place = std::env::current_exe().context("finding this program")?;
    let program = Program::open(Path::new("/proc/self/exe"))?;
    let journal = memfd_create("quorumfs-journal", MemfdFlags::CLOEXEC).context("memory for the journal")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime")?.block_on(async {
        let signals = Signals::listen()?;
        let supervisor = Supervisor {
            args,
            options,
            path,
            source: mount::source(args, &settings),
            arguments,
            place,
            program,
            device: None,
            journal,
            generation: 0,
            resends: false,
            served: false,
            worker: None,
            candidate: None,
            asker: None,
            start_at: Instant::now(),
            failures: 0,
            gone: Vec::new(),
            requests: None,
        };
        supervisor.watch(signals).await
    })
}

/// The command line of a worker, which may start in another directory.
fn arguments(
    args: &MountArgs,
    options: &MountOptions,
    settings: &quorumfs_api::client::Settings,
    path: &Path,
) -> anyhow::Result<Vec<std::ffi::OsString>> {
    let absolute = |path: &Path| std::path::absolute(path).with_context(|| format!("resolving {path:?}"));
    let mut words: Vec<std::ffi::OsString> = vec!["mount".into()];
    words.push(settings.nodes.join(",").into());
    words.push(path.into());
    words.extend(["-o".into(), options.behaviour().into()]);
    words.extend(["--certs".into(), absolute(&settings.certs)?.into()]);
    words.extend(["--name".into(), settings.name.as_str().into()]);
    if let Some(prefix) = &options.prefix {
        words.extend(["--prefix".into(), prefix.into()]);
    }
    if let Some(timeout) = options.timeout {
        words.extend(["--timeout".into(), format!("{}ms", timeout.as_millis()).into()]);
    }
    if options.create_prefix {
        words.push("--create-prefix".into());
    }
    if let Some(file) = &options.log_file {
        words.extend(["--log-file".into(), absolute(file)?.into()]);
    }
    if args.is_daemon {
        words.push(daemon::FLAG.into());
    }
    Ok(words)
}

impl Program {
    fn open(path: &Path) -> anyhow::Result<Program> {
        Ok(Program(File::open(path).with_context(|| format!("opening the program {path:?}"))?))
    }

    fn again(&self) -> anyhow::Result<Program> {
        Ok(Program(self.0.try_clone().context("the worker's program")?))
    }

    /// What `execve` takes.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    /// What it says to `--version`.
    fn version(&self) -> anyhow::Result<String> {
        let output = Command::new(self.path()).arg0("fsd").arg("--version").output();
        let output = output.context("it cannot be executed")?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_string();
        if !output.status.success() || !text.starts_with("fsd ") {
            bail!("it does not say its version ({})", output.status);
        }
        Ok(text)
    }
}

impl Worker {
    async fn report(&self) -> io::Result<Option<Report>> {
        self.channel.next_report().await
    }

    fn kill(&self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
    }
}

async fn report_of(worker: Option<&Worker>) -> io::Result<Option<Report>> {
    match worker {
        Some(worker) => worker.report().await,
        None => std::future::pending().await,
    }
}

async fn asked(requests: Option<&mut Requests>) -> Asker {
    match requests {
        Some(requests) => requests.next().await,
        None => std::future::pending().await,
    }
}

impl Supervisor<'_> {
    async fn watch(mut self, mut signals: Signals) -> anyhow::Result<ExitCode> {
        let mut upgrade = signal(SignalKind::user_defined2()).context("taking signals")?;
        let mut reap = tokio::time::interval(REAP);
        loop {
            let candidate = self.candidate.as_ref();
            let late = candidate.map_or(Instant::now(), |candidate| candidate.until);
            let candidate = candidate.map(|candidate| &candidate.worker);
            // Who asks for an upgrade while a worker starts is heard when it serves: the supervisor may hear of that later than
            // whoever was served.
            let serves = matches!(&self.worker, Some(Worker { phase: Phase::Serving(_), .. }));
            let next = tokio::select! {
                report = report_of(self.worker.as_ref()) => self.on_report(report).await?,
                report = report_of(candidate) => self.on_candidate(report).await?,
                () = tokio::time::sleep_until(self.start_at.into()), if self.worker.is_none() => {
                    let program = self.program.again()?;
                    self.worker = Some(self.start(program)?);
                    Next::Stay
                }
                () = tokio::time::sleep_until(late.into()), if self.candidate.is_some() => {
                    self.give_candidate_up("it did not have the tree in time").await;
                    Next::Stay
                }
                wanted = signals.next() => match wanted {
                    Wanted::End => return self.end().await,
                    Wanted::Reload => {
                        if let Some(worker) = &self.worker {
                            let _ = kill_process(Pid::from_child(&worker.child), Signal::HUP);
                        }
                        Next::Stay
                    }
                },
                _ = upgrade.recv(), if serves => { self.upgrade(None).await; Next::Stay }
                asker = asked(self.requests.as_mut()), if serves => { self.upgrade(Some(asker)).await; Next::Stay }
                _ = reap.tick() => { self.reap(); Next::Stay }
            };
            if let Next::End(code) = next {
                return Ok(code);
            }
        }
    }

    /// Starts a worker of that program.
    fn start(&self, program: Program) -> anyhow::Result<Worker> {
        let (ours, theirs) = channel::pair().context("a channel to the worker")?;
        let mut command = Command::new(program.path());
        command.arg0(WORKER_NAME).args(&self.arguments);
        command.arg(WORKER_FLAG).arg(theirs.as_raw_fd().to_string());
        if self.device.is_some() {
            command.arg(RESUME_FLAG);
        }
        // Ctrl-C in the terminal is for the supervisor.
        command.process_group(0).stdin(std::process::Stdio::null());
        mounting::inherit(&mut command, theirs.as_fd());
        let child = command.spawn().context("starting a worker")?;
        tracing::debug!(worker = child.id(), "started a worker");
        Ok(Worker { child, channel: Channel::new(ours)?, phase: Phase::Starting, program })
    }

    async fn on_report(&mut self, report: io::Result<Option<Report>>) -> anyhow::Result<Next> {
        match report {
            Ok(Some(Report::Prepared { .. })) => {
                if let Some(worker) = &mut self.worker {
                    worker.phase = Phase::Prepared;
                }
                if self.device.is_none() {
                    self.mount()?;
                }
                self.order().await;
                Ok(Next::Stay)
            }
            Ok(Some(Report::Serving { resends })) => self.on_serving(resends).await,
            Ok(Some(Report::Unmounted)) => self.finish().await,
            Ok(None) | Err(_) => self.on_end().await,
        }
    }

    /// The first worker has the tree.
    fn mount(&mut self) -> anyhow::Result<()> {
        let allow_other = self.options.allow_other.unwrap_or_else(mount::is_root);
        let mounted = mounting::mount(&self.path, &self.source, self.options, allow_other);
        let mounted = mounted.map_err(|error| {
            if let Some(worker) = &self.worker {
                worker.kill();
            }
            anyhow::Error::msg(mountpoint::explain_mount_error(&error, &self.path))
        });
        self.device = Some(mounted?);
        Ok(())
    }

    /// Gives the mount to the worker.
    async fn order(&mut self) {
        let (Some(worker), Some(device)) = (&mut self.worker, &self.device) else { return };
        let order = Order::Serve { generation: self.generation, resumed: self.generation > 0 };
        self.generation += 1;
        worker.phase = Phase::Ordered;
        // If it is gone, that is read next.
        let _ = worker.channel.order(order, &[device.as_fd(), self.journal.as_fd()]).await;
    }

    async fn on_serving(&mut self, resends: bool) -> anyhow::Result<Next> {
        let Some(worker) = &mut self.worker else { return Ok(Next::Stay) };
        worker.phase = Phase::Serving(Instant::now());
        self.program = worker.program.again()?;
        self.resends = resends;
        self.served = true;
        let pid = worker.child.id();
        if self.generation > 1 {
            tracing::info!(worker = pid, "a new worker serves {}", self.path.display());
            self.answer(Ok(format!("worker {pid} serves {} now", self.path.display()))).await;
            return Ok(Next::Stay);
        }
        match Requests::listen(&self.path) {
            Ok(requests) => self.requests = Some(requests),
            Err(error) => {
                tracing::warn!("`fsd upgrade` cannot reach this mount, SIGUSR2 can: {error:#}");
            }
        }
        if self.args.is_daemon {
            daemon::report_ready(self.options.log_file.as_deref())?;
        }
        tracing::info!(worker = pid, "mounted on {}", self.path.display());
        if !resends {
            tracing::warn!(
                "this kernel cannot ask again what a dead worker did not answer (Linux 6.9 can): if the worker \
                 dies, the mount dies with it, and it cannot be upgraded in place"
            );
        }
        Ok(Next::Stay)
    }

    /// The worker of now is gone.
    async fn on_end(&mut self) -> anyhow::Result<Next> {
        let Some(worker) = self.worker.take() else { return Ok(Next::Stay) };
        let phase = worker.phase;
        let mut child = worker.child;
        if !self.served {
            // It says itself what is in the way. Nobody has used the mount yet.
            if self.device.take().is_some() {
                let _ = mountpoint::detach(&self.path, true);
            }
            let status = end_of(&mut child, END_TIMEOUT).await;
            if status.is_none() {
                let _ = child.kill();
            }
            return Ok(Next::End(status.map_or(ExitCode::FAILURE, code_of)));
        }
        // A thread of it that waits inside the mount ends when the next worker answers it.
        let status = child.try_wait().ok().flatten();
        if status.is_none() {
            let _ = kill_process(Pid::from_child(&child), Signal::KILL);
        }
        self.gone.push(child);
        if !mountpoint::is_mounted(&self.path) {
            tracing::info!("{} was unmounted", self.path.display());
            return Ok(Next::End(ExitCode::SUCCESS));
        }
        if let Some(candidate) = self.candidate.take_if(|candidate| candidate.chosen) {
            self.worker = Some(candidate.worker);
            self.asker = candidate.asker;
            self.order().await;
            return Ok(Next::Stay);
        }
        let how = status.map_or("killed".to_string(), |status| status.to_string());
        if !self.resends {
            tracing::error!(%how, "the worker of {} is gone, and this kernel cannot go on with another one", self.path.display());
            return Ok(self.give_up().await);
        }
        let was_good = matches!(phase, Phase::Serving(since) if since.elapsed() >= GOOD_TIME);
        self.failures = if was_good { 1 } else { self.failures + 1 };
        if self.failures >= FAILURES_MAX {
            tracing::error!(%how, failures = self.failures, "workers of {} die again and again: giving up", self.path.display());
            return Ok(self.give_up().await);
        }
        let pause = pause(self.failures);
        tracing::warn!(%how, ?pause, "the worker of {} is gone: starting another one", self.path.display());
        self.start_at = Instant::now() + pause;
        self.answer(Err(format!("the new worker is gone ({how}): going on with the program of before")))
            .await;
        Ok(Next::Stay)
    }

    /// The mount stays, and answers ENOTCONN to everybody.
    async fn give_up(&mut self) -> Next {
        self.give_candidate_up("the mount is given up").await;
        self.answer(Err("the mount is given up".to_string())).await;
        tracing::error!(
            "{} is not served any more; take it off with `fsd umount {}`, or mount it anew",
            self.path.display(),
            self.path.display()
        );
        self.device = None;
        Next::End(ExitCode::FAILURE)
    }

    async fn answer(&mut self, result: Result<String, String>) {
        if let Some(asker) = self.asker.take() {
            asker.answer(&result).await;
        }
    }

    /// Starts a worker of the program that is installed now.
    async fn upgrade(&mut self, asker: Option<Asker>) {
        let result = if self.candidate.is_some() {
            Err(anyhow::anyhow!("an upgrade is under way already"))
        } else if !self.resends {
            Err(anyhow::anyhow!("this kernel cannot do that: it takes Linux 6.9; unmount, and mount anew"))
        } else {
            self.candidate_worker()
        };
        match result {
            Ok(worker) => {
                let until = Instant::now() + UPGRADE_TIMEOUT;
                self.candidate = Some(Candidate { worker, until, asker, chosen: false });
            }
            Err(error) => {
                let text = format!("no upgrade, the old program goes on: {error:#}");
                tracing::warn!("{text}");
                if let Some(asker) = asker {
                    asker.answer(&Err(text)).await;
                }
            }
        }
    }

    fn candidate_worker(&self) -> anyhow::Result<Worker> {
        let program = Program::open(&self.place)?;
        let version = program.version().with_context(|| format!("the program {:?}", self.place))?;
        tracing::info!(%version, "upgrading: waiting for the new worker to have the tree");
        self.start(program)
    }

    async fn on_candidate(&mut self, report: io::Result<Option<Report>>) -> anyhow::Result<Next> {
        let Some(candidate) = &mut self.candidate else { return Ok(Next::Stay) };
        match report {
            Ok(Some(Report::Prepared { format })) if format == handover::FORMAT => {
                candidate.worker.phase = Phase::Prepared;
                candidate.chosen = true;
                match &self.worker {
                    // What it had under way, the new one is asked again.
                    Some(worker) => worker.kill(),
                    // It died by itself in the meantime.
                    None => {
                        if let Some(candidate) = self.candidate.take() {
                            (self.worker, self.asker) = (Some(candidate.worker), candidate.asker);
                            self.order().await;
                        }
                    }
                }
            }
            Ok(Some(Report::Prepared { format })) => {
                let ours = handover::FORMAT;
                let why =
                    format!("it writes notes of format {format} and not {ours}: unmount, and mount anew");
                self.give_candidate_up(&why).await;
            }
            Ok(Some(_)) => self.give_candidate_up("it does not behave like a worker").await,
            Ok(None) | Err(_) => {
                if candidate.chosen {
                    // The old one was told to go: there is nobody to go back to, but its program.
                    self.asker = candidate.asker.take();
                }
                self.give_candidate_up("it ended by itself, see the log").await;
            }
        }
        Ok(Next::Stay)
    }

    async fn give_candidate_up(&mut self, why: &str) {
        let Some(candidate) = self.candidate.take() else { return };
        candidate.worker.kill();
        self.gone.push(candidate.worker.child);
        let text = format!("no upgrade, the old program goes on: the new worker was not usable: {why}");
        tracing::warn!("{text}");
        if let Some(asker) = candidate.asker {
            asker.answer(&Err(text)).await;
        }
    }

    /// SIGTERM or SIGINT.
    async fn end(mut self) -> anyhow::Result<ExitCode> {
        self.give_candidate_up("the mount ends").await;
        if self.device.is_none() {
            if let Some(worker) = &self.worker {
                worker.kill();
            }
            return Ok(ExitCode::SUCCESS);
        }
        let in_use = mount::unmount(&self.path).await?;
        if in_use && let Some(worker) = &self.worker {
            let _ = worker.channel.order(Order::End, &[]).await;
        }
        self.wait_for_end().await;
        Ok(ExitCode::SUCCESS)
    }

    /// The worker says that the mount is off.
    async fn finish(&mut self) -> anyhow::Result<Next> {
        self.give_candidate_up("the mount is off").await;
        self.wait_for_end().await;
        Ok(Next::End(ExitCode::SUCCESS))
    }

    async fn wait_for_end(&mut self) {
        let Some(mut worker) = self.worker.take() else { return };
        let end = async { while let Ok(Some(_)) = worker.report().await {} };
        if tokio::time::timeout(mount::DRAIN_TIME + END_TIMEOUT, end).await.is_err() {
            tracing::warn!("the worker does not end: killing it");
            worker.kill();
        }
        // Whoever waits in the mount is let go with this.
        self.device = None;
        end_of(&mut worker.child, END_TIMEOUT).await;
    }

    fn reap(&mut self) {
        self.gone.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }
}

/// Waits for the end of a process, for at most that time.
async fn end_of(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < deadline => tokio::time::sleep(LOOK).await,
            Ok(status) => return status,
            Err(_) => return None,
        }
    }
}

/// Pause before another worker is started, after so many failures in a row.
fn pause(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => PAUSE_MIN.saturating_mul(1 << (more - 2).min(16)).min(PAUSE_MAX),
    }
}

fn code_of(status: ExitStatus) -> ExitCode {
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    code.map_or(ExitCode::FAILURE, ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        assert_eq!(pause(1), Duration::ZERO);
        assert_eq!((pause(2), pause(3)), (PAUSE_MIN, 2 * PAUSE_MIN));
        assert_eq!(pause(40), PAUSE_MAX);
    }
}
