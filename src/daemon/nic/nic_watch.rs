//! The thread that watches the NICs. It reads a link whenever the kernel reports a change, and the
//! sockets four times a second.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Notify;

use crate::xdp::{LinkNews, Links};

use crate::daemon::workers::Workers;

use super::nic_control::{LiveNic, PortsOfNics};
use super::nic_life::NicLife;
use super::nics::Nics;

/// Between two looks at the sockets.
const LOOK: Duration = Duration::from_millis(250);

/// The NICs to watch, and the objects that a watch calls.
pub struct NicWatchSetup {
    /// The NICs.
    pub nics: Arc<Nics>,
    /// The workers.
    pub workers: Arc<Workers>,
    /// The ports.
    pub ports: Arc<dyn PortsOfNics>,
}

/// The thread; ends when dropped.
#[derive(Debug)]
pub struct NicWatch {
    stop: Arc<Notify>,
    thread: Option<JoinHandle<Vec<NicLife>>>,
}

impl NicWatch {
    /// Watch NICs, each with its life so far.
    ///
    /// # Errors
    /// No thread or socket to be had.
    pub fn start(watched: NicWatchSetup, lives: Vec<NicLife>) -> io::Result<Self> {
        let links = Links::listen()?;
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("nics".to_owned())
            .spawn(move || watch(&watched, lives, links, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Stop watching. Returns the lives of the NICs.
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
    NicWatchSetup { nics, workers, ports }: &NicWatchSetup,
    mut lives: Vec<NicLife>,
    mut links: Links,
    stop: &Notify,
) -> Vec<NicLife> {
    // Any link may have changed before we listened.
    let mut news = LinkNews { any: true, ..LinkNews::default() };
    loop {
        // A worker has ended only if the daemon stops.
        let Ok(reports) = workers.examine() else { return lives };
        for life in &mut lives {
            let Some(nic) = nics.iter().find(|nic| nic.id == life.id) else { continue };
            nic.count();
            let (ports, links) = (&**ports, &links);
            if life.look(&LiveNic { nic, workers, ports, links }, &news, &reports).is_err() {
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
