//! What a worker does: all that `fsd mount` does, but for mounting and unmounting. It does not end for a
//! signal as long as there is a supervisor, which may want to have the mount served to its end.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use fsd::handover;
use fsd::serve::{FIRST_COPY, Handover, Mount, Prepared};
use quorumfs_api::client::{Client, Settings};

use super::channel::{Channel, Order, Report};
use crate::cli::MountArgs;
use crate::mount::{self, Signals, Wanted};
use crate::options::MountOptions;
use crate::{daemon, mountpoint};

/// Name of the process for `ps` and `top`.
const COMM: &std::ffi::CStr = c"fsd-worker";

/// Runs a worker; `channel` is the number of its end of the channel.
pub fn run(args: &MountArgs, options: &MountOptions, channel: RawFd) -> anyhow::Result<ExitCode> {
    let _ = rustix::thread::set_name(COMM);
    // SAFETY: the supervisor has left this descriptor open for us, and nothing else uses it.
    let channel = unsafe { OwnedFd::from_raw_fd(channel) };
    rustix::io::fcntl_setfd(&channel, rustix::io::FdFlags::CLOEXEC).context("the supervisor's channel")?;
    let settings = mount::settings(args, options)?;
    let path = mountpoint::resolve(&args.mountpoint)?;
    mount::runtime()?.block_on(async {
        let channel = Channel::new(channel).context("the supervisor's channel")?;
        let result = work(args, options, settings, path, &channel).await;
        // Without the channel, the supervisor may put an end to us before this is said.
        if let Err(error) = &result
            && args.resume
        {
            tracing::error!("{error:#}");
        }
        result
    })
}

async fn work(
    args: &MountArgs,
    options: &MountOptions,
    settings: Settings,
    path: PathBuf,
    channel: &Channel,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let prefix = mount::parse_prefix(options.prefix.as_deref())?;
    let client = Client::new(settings)?;
    // A mount that is there is not given up because the cluster is away, or the prefix.
    if !args.resume {
        mount::check_prefix(&client, &prefix, options.create_prefix).await?;
    }
    if args.resume && args.is_daemon {
        daemon::turn_log(options.log_file.as_deref())?;
    }
    let limit = (!args.resume).then_some(FIRST_COPY);
    let prepared = Prepared::new(mount::config(client, prefix, path.clone(), options), limit).await?;
    channel.report(Report::Prepared { format: handover::FORMAT }).await?;
    let Some(mount) = take_over(channel, prepared).await? else { return Ok(ExitCode::SUCCESS) };
    if !args.resume && args.is_daemon {
        daemon::turn_log(options.log_file.as_deref())?;
    }
    channel.report(Report::Serving { resends: mount.resends() }).await?;
    serve(mount, &path, channel, &mut signals).await?;
    Ok(ExitCode::SUCCESS)
}

/// Waits for its turn.
async fn take_over(channel: &Channel, prepared: Prepared) -> anyhow::Result<Option<Mount>> {
    let Some((order, descriptors)) = channel.next_order().await? else { return Ok(None) };
    let Order::Serve { generation, resumed } = order else { return Ok(None) };
    let Ok([device, journal]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        bail!("the supervisor did not send the device and the journal");
    };
    let supervisor =
        rustix::process::getppid().and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok());
    let handover = Handover { device, journal, generation, supervisor };
    let mount = if resumed { prepared.resume(handover).await } else { prepared.serve(handover).await };
    Ok(Some(mount?))
}

async fn serve(mount: Mount, path: &Path, channel: &Channel, signals: &mut Signals) -> anyhow::Result<()> {
    let mut supervised = true;
    loop {
        tokio::select! {
            ended = mount.ended() => {
                ended?;
                tracing::info!("{} was unmounted", path.display());
                break;
            }
            order = channel.next_order(), if supervised => match gone_is_none(order)? {
                Some((Order::End, _)) => break,
                Some((Order::Serve { .. }, _)) => bail!("the supervisor sent the mount twice"),
                None => {
                    supervised = false;
                    mount.core().set_supervisor(None);
                    tracing::warn!(
                        "the supervisor is gone: this worker serves {} on, but nobody would replace it; SIGTERM unmounts",
                        path.display()
                    );
                }
            },
            wanted = signals.next() => match wanted {
                Wanted::Reload => mount.reload_certificates(),
                Wanted::End if supervised => {}
                Wanted::End => { mount::unmount(path).await?; break }
            },
        }
    }
    let _ = channel.report(Report::Unmounted).await;
    mount.stop(mount::DRAIN_TIME).await?;
    Ok(())
}

fn gone_is_none<T>(received: io::Result<Option<T>>) -> io::Result<Option<T>> {
    match received {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(None),
        other => other,
    }
}
