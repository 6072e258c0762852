//! The thread that sees what becomes of the NICs: it looks at a link whenever the kernel says that
//! one has changed, and at the sockets four times a second.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Notify;

use crate::xdp::{LinkNews, Links};

use super::nic_life::NicLife;
use crate::daemon::ports::Registry;

/// Between two looks at the sockets.
const LOOK: Duration = Duration::from_millis(250);

/// The thread; ends when dropped.
#[derive(Debug)]
pub struct NicWatch {
    stop: Arc<Notify>,
    thread: Option<JoinHandle<Vec<NicLife>>>,
}

impl NicWatch {
    /// Watch the registry's NICs, of which this is known.
    ///
    /// # Errors
    /// No thread or socket to be had.
    pub fn start(registry: Arc<Registry>, lives: Vec<NicLife>) -> io::Result<Self> {
        let links = Links::listen()?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("nics".to_owned())
            .spawn(move || watch(&registry, lives, links, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Watch no more; what is known of the NICs, and the sockets of those whose link is down.
    pub fn end(mut self) -> Vec<NicLife> {
        self.join()
    }

    fn join(&mut self) -> Vec<NicLife> {
        self.stop.notify_one();
        let lives = self.thread.take().map(JoinHandle::join);
        lives.unwrap_or_else(|| Ok(Vec::new())).unwrap_or_else(|_panic| {
            tracing::error!("the thread that watches the NICs has panicked");
            Vec::new()
        })
    }
}

impl Drop for NicWatch {
    fn drop(&mut self) {
        drop(self.join());
    }
}

fn watch(
    registry: &Arc<Registry>,
    mut lives: Vec<NicLife>,
    mut links: Links,
    stop: &Notify,
) -> Vec<NicLife> {
    // What has changed before we listened.
    let mut news = LinkNews { any: true, ..LinkNews::default() };
    loop {
        // A worker is gone only when the daemon stops.
        let Ok(reports) = registry.fabric.examine() else { return lives };
        for life in &mut lives {
            if life.look(registry, &links, &news, &reports).is_err() {
                return lives;
            }
        }
        news = match links.wait(LOOK, stop) {
            Ok(Some(news)) => news,
            Ok(None) => return lives,
            Err(error) => {
                tracing::error!(%error, "the kernel's news of links cannot be had");
                std::thread::sleep(LOOK);
                LinkNews { any: true, ..LinkNews::default() }
            }
        };
    }
}
