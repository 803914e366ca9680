//! Calls under way here: an event of our own session that fits to one is its answer, and the kernel fires what
//! belongs to it by itself.

use crate::core::Core;
use crate::errno::{Errno, Result};
use crate::mirror::At;
use crate::state::{State, Touch};

/// What the kernel holds for the names of a call, for as long as the call is under way.
pub struct Believed<'a> {
    core: &'a Core,
    names: Vec<At>,
}

impl<'a> Believed<'a> {
    /// Notes what everybody finds there now, which is what the kernel was told last.
    pub fn new(core: &'a Core, state: &mut State, names: Vec<At>) -> Believed<'a> {
        for at in &names {
            let ino = state.mirror.child(at.0, &at.1);
            state.believed.insert(at.clone(), ino);
        }
        Believed { core, names }
    }

    /// What the kernel is told in the end.
    pub fn verdict(&self) -> Result<()> {
        let mut state = self.core.state.lock();
        let mut any = false;
        for at in &self.names {
            any |= state.surprised.remove(at);
        }
        if any { Err(Errno::ESTALE) } else { Ok(()) }
    }
}

impl Drop for Believed<'_> {
    fn drop(&mut self) {
        let mut state = self.core.state.lock();
        for at in &self.names {
            state.believed.remove(at);
            state.surprised.remove(at);
        }
    }
}

/// A request that is under way, for as long as it lives.
pub struct Asked<'a> {
    core: &'a Core,
    /// What it concerns.
    pub touches: Vec<Touch>,
}

impl<'a> Asked<'a> {
    /// Counts it among those under way.
    pub fn new(core: &'a Core, touches: Vec<Touch>) -> Asked<'a> {
        let mut state = core.state.lock();
        for touch in &touches {
            *state.inflight.entry(touch.clone()).or_default() += 1;
        }
        drop(state);
        Asked { core, touches }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut state = self.core.state.lock();
        for touch in &self.touches {
            if let Some(count) = state.inflight.get_mut(touch) {
                *count -= 1;
                if *count == 0 {
                    state.inflight.remove(touch);
                }
            }
        }
    }
}
