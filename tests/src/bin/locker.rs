//! A process that locks what it is told to, one line on standard input after the other: locks belong to
//! processes, so the tests of locks need some. Answers each line with one of its own.
//!
//! ```text
//! flock PATH shared|exclusive|unlock [wait]
//! fcntl PATH shared|exclusive|unlock START LENGTH [wait]
//! test PATH shared|exclusive START LENGTH      free, or what is in the way: KIND START LENGTH PID
//! write PATH TEXT                              writes and syncs through the descriptor that locks
//! close PATH
//! ```
//!
//! An answer is `ok`, or `errno NUMBER`. The end of the input ends the process.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

fn main() -> io::Result<()> {
    let mut open: HashMap<String, File> = HashMap::new();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match run(&mut open, &words) {
            Ok(answer) => answer,
            Err(error) => format!("errno {}", error.raw_os_error().unwrap_or(0)),
        };
        let mut out = io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what.to_string())
}

fn file<'a>(open: &'a mut HashMap<String, File>, path: &str) -> io::Result<&'a File> {
    if !open.contains_key(path) {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        open.insert(path.to_string(), file);
    }
    open.get(path).ok_or_else(|| bad("no such file"))
}

fn run(open: &mut HashMap<String, File>, words: &[&str]) -> io::Result<String> {
    match words {
        ["flock", path, kind, rest @ ..] => {
            let operation = match *kind {
                "shared" => libc::LOCK_SH,
                "exclusive" => libc::LOCK_EX,
                _ => libc::LOCK_UN,
            };
            let how = if rest == ["wait"] { operation } else { operation | libc::LOCK_NB };
            // SAFETY: the descriptor is open.
            check(unsafe { libc::flock(file(open, path)?.as_raw_fd(), how) })
        }
        ["fcntl", path, kind, start, length, rest @ ..] => {
            let command = if rest == ["wait"] { libc::F_SETLKW } else { libc::F_SETLK };
            let lock = range(kind, start, length)?;
            // SAFETY: the descriptor is open and the structure lives during the call.
            check(unsafe { libc::fcntl(file(open, path)?.as_raw_fd(), command, &lock) })
        }
        ["test", path, kind, start, length] => {
            let mut lock = range(kind, start, length)?;
            // SAFETY: as above; the kernel writes into the structure.
            check(unsafe { libc::fcntl(file(open, path)?.as_raw_fd(), libc::F_GETLK, &mut lock) })?;
            let kind = match i32::from(lock.l_type) {
                libc::F_UNLCK => return Ok("free".to_string()),
                libc::F_RDLCK => "shared",
                _ => "exclusive",
            };
            Ok(format!("{kind} {} {} {}", lock.l_start, lock.l_len, lock.l_pid))
        }
        ["write", path, text] => {
            let file = file(open, path)?;
            file.write_all_at(text.as_bytes(), 0)?;
            file.sync_all()?;
            Ok("ok".to_string())
        }
        ["close", path] => {
            open.remove(*path);
            Ok("ok".to_string())
        }
        _ => Err(bad("what?")),
    }
}

fn range(kind: &str, start: &str, length: &str) -> io::Result<libc::flock> {
    // SAFETY: all-zero bytes are a valid flock structure.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = match kind {
        "shared" => libc::F_RDLCK,
        "exclusive" => libc::F_WRLCK,
        _ => libc::F_UNLCK,
    } as i16;
    lock.l_whence = libc::SEEK_SET as i16;
    lock.l_start = start.parse().map_err(|_| bad("START is a number"))?;
    lock.l_len = length.parse().map_err(|_| bad("LENGTH is a number"))?;
    Ok(lock)
}

fn check(result: i32) -> io::Result<String> {
    if result == 0 { Ok("ok".to_string()) } else { Err(io::Error::last_os_error()) }
}
