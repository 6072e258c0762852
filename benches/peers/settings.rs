//! The measurements to run, and their length.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use clap::Parser;

/// isonic beside its peers, in one run, on one machine.
#[derive(Clone, Debug, Parser)]
#[command(name = "peers")]
pub struct Settings {
    /// Rounds; each runs every peer once.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Everything once and briefly: that it completes and that the counts add up.
    #[arg(long)]
    pub short: bool,
    /// Only scenarios whose name contains this; may be given again.
    #[arg(long)]
    pub only: Vec<String>,
    /// Where the results go.
    #[arg(long, default_value = "target/bench-peers")]
    pub output: PathBuf,
    /// Also writes the plots and tables of docs/performance.md.
    #[arg(long, conflicts_with_all = ["short", "only"])]
    pub docs: bool,
    /// A directory with a hugetlbfs for DPDK's memory; without it, ordinary pages.
    #[arg(long)]
    pub huge_pages: Option<PathBuf>,
    /// Be the reference device between these sockets.
    #[arg(long, hide = true, num_args = 2)]
    pub serve_reference: Vec<PathBuf>,
    /// Added by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

static SETTINGS: OnceLock<Settings> = OnceLock::new();

impl Settings {
    /// Those of the command line.
    pub fn get() -> &'static Self {
        SETTINGS.get_or_init(|| {
            let mut settings = Self::parse();
            if settings.short {
                (settings.rounds, settings.seconds) = (1, 0.3);
            }
            settings
        })
    }

    /// The time of each measurement.
    pub fn time(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// Before each measurement.
    pub fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.seconds / 4.0)
    }

    /// Frame lengths.
    pub fn frames(&self) -> &'static [usize] {
        if self.short { &[64] } else { &[64, 512, 1500] }
    }

    /// Whether a scenario of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part))
    }
}
