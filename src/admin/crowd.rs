//! Who has the places of the admin port. When all are taken, a newcomer gets that of whoever has asked for nothing for the
//! longest time: a crowd that only holds connections keeps no probe waiting.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a connection does. Of two, the lesser one goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Doing {
    /// Its request has not come, or it has its answer.
    Nothing,
    /// Its answer is being made.
    Asking,
    /// It is told events, of which there is a limit of its own.
    Listening,
}

/// The places and who has them.
#[derive(Debug)]
pub(super) struct Crowd {
    places: usize,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    present: HashMap<u64, Present>,
}

#[derive(Debug)]
struct Present {
    doing: Doing,
    since: Instant,
    leave: CancellationToken,
}

/// A connection with a place, until it is dropped.
#[derive(Debug)]
pub(super) struct Guest {
    crowd: Arc<Crowd>,
    number: u64,
    leave: CancellationToken,
}

impl Crowd {
    /// Nobody is there yet.
    pub(super) fn new(places: usize) -> Arc<Self> {
        Arc::new(Self { places, guests: Mutex::default() })
    }

    /// Gives a place to a new connection, and takes one away where none is left.
    pub(super) fn enter(self: &Arc<Self>) -> Guest {
        let leave = CancellationToken::new();
        let mut guests = self.lock();
        while guests.present.len() >= self.places {
            // Of two that came at the same time the first one goes.
            let longest = guests.present.iter().min_by_key(|(number, guest)| (guest.doing, guest.since, **number));
            let Some(number) = longest.map(|(number, _)| *number) else { break };
            if let Some(guest) = guests.present.remove(&number) {
                guest.leave.cancel();
            }
        }
        let number = guests.next;
        guests.next += 1;
        guests.present.insert(number, Present { doing: Doing::Nothing, since: Instant::now(), leave: leave.clone() });
        drop(guests);
        Guest { crowd: self.clone(), number, leave }
    }

    fn lock(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest {
    /// A request has come.
    pub(super) fn asks(&self) {
        self.does(Doing::Asking);
    }

    /// Its answer is made, or begins to be told.
    pub(super) fn answered(&self, is_told_events: bool) {
        self.does(if is_told_events { Doing::Listening } else { Doing::Nothing });
    }

    /// Waits until another connection has its place.
    pub(super) async fn left(&self) {
        self.leave.cancelled().await;
    }

    fn does(&self, doing: Doing) {
        if let Some(guest) = self.crowd.lock().present.get_mut(&self.number) {
            (guest.doing, guest.since) = (doing, Instant::now());
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.crowd.lock().present.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asked_for_nothing_for_the_longest_time_leaves_first() {
        let crowd = Crowd::new(4);
        let guests: Vec<Guest> = (0..4).map(|_| crowd.enter()).collect();
        guests[0].answered(true);
        guests[1].asks();
        guests[2].asks();
        guests[2].answered(false);
        let has_left = |guests: &[Guest]| guests.iter().map(|guest| guest.leave.is_cancelled()).collect::<Vec<_>>();

        let mut newcomers = vec![crowd.enter()];
        assert_eq!(has_left(&guests), [false, false, false, true]);
        newcomers.push(crowd.enter());
        assert_eq!(has_left(&guests), [false, false, true, true]);
        newcomers.push(crowd.enter());
        assert_eq!(has_left(&newcomers), [true, false, false], "idle ones before those that ask or listen");
        drop(newcomers);
        newcomers = vec![crowd.enter(), crowd.enter()];
        assert_eq!(has_left(&newcomers), [false, false], "places come back");
        assert_eq!(has_left(&guests), [false, false, true, true]);
    }
}
