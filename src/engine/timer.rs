//! Wakes tasks whose time to wait is over. A thread waits with a timeout of its own, but a task has
//! no clock that every executor has.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::concurrent::{Event, lock, wake};

/// The deadlines of waiting tasks. Times are those of the engine's monotonic clock.
#[derive(Debug, Default)]
pub(in crate::engine) struct Timer {
    deadlines: Mutex<Deadlines>,
    /// The first deadline may be earlier now, or the cache closes.
    pub(in crate::engine) changed: Event,
}

#[derive(Debug, Default)]
struct Deadlines {
    next: u64,
    tasks: BTreeMap<(Duration, u64), Waker>,
    /// Nobody wakes tasks any more, so none may wait.
    is_closed: bool,
}

impl Timer {
    /// Waits until `future` is ready, but not beyond `deadline` if there is one. The caller looks
    /// at the time afterwards.
    pub(in crate::engine) async fn limit(&self, mut future: impl Future + Unpin, deadline: Option<Duration>) {
        let mut reached = deadline.map(|at| Reached { timer: self, at, listed: None });
        std::future::poll_fn(|context| {
            if Pin::new(&mut future).poll(context).is_ready() {
                return Poll::Ready(());
            }
            if reached.as_mut().is_some_and(|reached| Pin::new(reached).poll(context).is_ready()) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// Wakes the tasks whose deadline has passed. Returns the earliest deadline that is left.
    pub(in crate::engine) fn wake_due(&self, now: Duration) -> Option<Duration> {
        let (due, next) = {
            let mut deadlines = lock(&self.deadlines);
            let later = deadlines.tasks.split_off(&(now.saturating_add(Duration::from_nanos(1)), 0));
            let due = std::mem::replace(&mut deadlines.tasks, later);
            (due, deadlines.tasks.keys().next().map(|(at, _)| *at))
        };
        due.into_values().for_each(wake);
        next
    }

    /// Wakes all tasks. From now on no deadline is waited for.
    pub(in crate::engine) fn close(&self) {
        let all = {
            let mut deadlines = lock(&self.deadlines);
            deadlines.is_closed = true;
            std::mem::take(&mut deadlines.tasks)
        };
        all.into_values().for_each(wake);
    }
}

/// Ready once the deadline has passed and the timer's thread has seen that.
struct Reached<'a> {
    timer: &'a Timer,
    at: Duration,
    listed: Option<(Duration, u64)>,
}

impl Future for Reached<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut deadlines = lock(&self.timer.deadlines);
        if deadlines.is_closed {
            return Poll::Ready(());
        }
        if let Some(listed) = self.listed {
            return match deadlines.tasks.get_mut(&listed) {
                None => Poll::Ready(()),
                Some(waker) => {
                    waker.clone_from(context.waker());
                    Poll::Pending
                }
            };
        }
        let own = (self.at, deadlines.next);
        deadlines.next += 1;
        let is_first = deadlines.tasks.keys().next().is_none_or(|first| own < *first);
        deadlines.tasks.insert(own, context.waker().clone());
        drop(deadlines);
        self.listed = Some(own);
        if is_first {
            self.timer.changed.signal();
        }
        Poll::Pending
    }
}

impl Drop for Reached<'_> {
    fn drop(&mut self) {
        if let Some(listed) = self.listed.take() {
            lock(&self.timer.deadlines).tasks.remove(&listed);
        }
    }
}
