//! The numbers of a session's writes. Pure bookkeeping: the state machine remembers the results of
//! the last [`SESSION_WINDOW`](crate::limits::SESSION_WINDOW) numbers only, so no more may be open.

use std::collections::BTreeSet;

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    next: u64,
    size: u64,
    under_way: BTreeSet<u64>,
}

/// A number for one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub number: u64,
    /// Every smaller number is answered, or given up for ever.
    pub done_below: u64,
}

impl Window {
    pub fn new(size: u64) -> Window {
        Window::starting_at(1, size)
    }

    /// One in which all numbers below `next` were given out before.
    pub fn starting_at(next: u64, size: u64) -> Window {
        Window { next, size, under_way: BTreeSet::new() }
    }

    /// The next number; `None` while the oldest write that is under way is a whole window behind.
    pub fn begin(&mut self) -> Option<Ticket> {
        let oldest = self.under_way.first().copied().unwrap_or(self.next);
        if self.next - oldest >= self.size {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.under_way.insert(number);
        Some(Ticket { number, done_below: oldest })
    }

    /// The result of this number was seen, or nobody will ever ask for it again.
    pub fn finish(&mut self, number: u64) {
        self.under_way.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_begin_at_one_and_wait_for_the_oldest() {
        let mut window = Window::new(3);
        for number in 1..=3 {
            assert_eq!(window.begin(), Some(Ticket { number, done_below: 1 }));
        }
        window.finish(2);
        assert_eq!(window.begin(), None, "1 is still under way, and 4 would push its result out");
        window.finish(1);
        assert_eq!(window.begin(), Some(Ticket { number: 4, done_below: 3 }));
    }

    proptest! {
        #[test]
        fn a_result_is_never_given_up_while_it_may_be_asked_for(
            size in 1u64..20,
            steps in proptest::collection::vec(proptest::option::of(0usize..20), 1..200),
        ) {
            let mut window = Window::new(size);
            let mut open: Vec<u64> = Vec::new();
            let mut highest = 0;
            for step in steps {
                match step {
                    None => match window.begin() {
                        Some(ticket) => {
                            prop_assert_eq!(ticket.number, highest + 1, "numbers have no gaps");
                            highest = ticket.number;
                            open.push(ticket.number);
                            let oldest = open.iter().copied().min().unwrap();
                            prop_assert_eq!(ticket.done_below, oldest);
                            prop_assert!(ticket.number - ticket.done_below < size);
                        }
                        None => {
                            let oldest = open.iter().copied().min().unwrap();
                            prop_assert!(highest + 1 - oldest >= size, "refused only when full");
                        }
                    },
                    Some(which) if !open.is_empty() => {
                        let number = open.remove(which % open.len());
                        window.finish(number);
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
