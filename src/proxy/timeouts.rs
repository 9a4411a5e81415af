//! The one timer of an exchange. It is armed early rather than often: when it fires before the deadline that counts by
//! then, it is armed again, so that a request on a busy connection touches no timer wheel.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep};

use super::connection::Flow;

/// A timer on loan from its connection.
#[derive(Debug)]
pub struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    flow: Arc<Flow>,
}

impl Timer {
    /// The timer of one exchange on that connection.
    pub fn new(flow: Arc<Flow>) -> Self {
        Self { sleep: flow.take_timer(), flow }
    }

    /// Ready once `deadline` has passed.
    pub fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// What `work` gives, or `None` once the deadline has passed. `later` may move the deadline when it is reached.
    pub async fn limit<F: Future>(
        &mut self,
        work: F,
        mut deadline: Instant,
        mut later: impl FnMut() -> Option<Instant>,
    ) -> Option<F::Output> {
        let mut work = std::pin::pin!(work);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(output));
            }
            while self.poll_until(cx, deadline).is_ready() {
                match later().filter(|moved| *moved > deadline && *moved > Instant::now()) {
                    Some(moved) => deadline = moved,
                    None => return Poll::Ready(None),
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(sleep) = self.sleep.take() {
            self.flow.keep_timer(sleep);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timer_of_an_earlier_request_serves_a_later_deadline() {
        let flow = Arc::new(Flow::default());
        let start = Instant::now();
        let pending = std::future::pending::<()>;
        for seconds in [3, 10, 1] {
            let mut timer = Timer::new(flow.clone());
            let before = Instant::now();
            let deadline = before + Duration::from_secs(seconds);

            assert!(timer.limit(pending(), deadline, || None).await.is_none());
            assert_eq!(Instant::now().duration_since(before).as_secs(), seconds);
        }
        assert_eq!(start.elapsed().as_secs(), 14);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_may_move_while_a_body_is_moving() {
        let mut timer = Timer::new(Arc::default());
        let start = Instant::now();
        let last_byte = start + Duration::from_secs(4);
        let limit = Duration::from_secs(5);

        let output = timer.limit(std::future::pending::<()>(), start + limit, || Some(last_byte + limit)).await;

        assert!(output.is_none());
        assert_eq!(start.elapsed(), Duration::from_secs(9));
    }
}
