//! From settings to a running worker: one list to start, one list to stop.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backend::local::Local;
use crate::backend::local::lock::DirectoryLock;
use crate::backend::memory::Memory;
use crate::backend::postgres::PostgreSql;
use crate::backend::redis::RedisStore;
use crate::backend::riak::Riak;
use crate::backend::{self, DynBackend};
use crate::cache::Cache;
use crate::client::connect::redact_url;
use crate::config::Loaded;
use crate::control;
use crate::http::{self, Readiness};
use crate::layer::{self, Layered};
use crate::model::clock::HybridClock;
use crate::model::{Code, Error, Result, Version};
use crate::queue::{LaneShard, Queue};
use crate::server::presence::Claim;
use crate::server::{self, Server, Serving};
use crate::store::Store;
use crate::telemetry;

/// How long a stop waits for each store: a disk may hang for ever.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// Between two looks at whether this worker can serve, before it does.
const FIT_PAUSE: Duration = Duration::from_millis(20);
/// The same while it does.
const HOLD_PAUSE: Duration = Duration::from_millis(500);
/// How long a stop waits for health answers on their way.
const LAST_TASKS_WAIT: Duration = Duration::from_millis(300);

/// Serves until SIGTERM or SIGINT. Exit code 0 after an orderly stop, 1 when it cannot start.
pub async fn serve(loaded: Loaded) -> ExitCode {
    let settings = loaded.settings;
    if let Err(fault) = telemetry::start(&settings.log) {
        // There is no log to say it in.
        drop(writeln!(std::io::stderr(), "error: log.level: {fault}"));
        return ExitCode::FAILURE;
    }
    let stop = CancellationToken::new();
    match run(settings, &stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            stop.cancel();
            tracing::error!("cannot serve: {}", error.message);
            ExitCode::FAILURE
        }
    }
}

async fn run(settings: crate::config::Settings, stop: &CancellationToken) -> Result<()> {
    let mut signals = Signals::new()?;
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "starting");

    // Health first, so that whoever waits for this worker sees it come up.
    let running = Arc::new(Running::default());
    let probe = {
        let running = running.clone();
        Arc::new(move || running.readiness())
    };
    let http = tokio::spawn(http::run(settings.http.clone(), probe, stop.clone()));

    let backends = tokio::select! {
        backends = open(&settings.backends) => backends?,
        name = signals.next() => { tracing::info!("{name} while starting"); return Ok(()) }
    };
    let layered = layers(backends, &settings.layers);
    running.set_backends(&layered);
    let erased =
        |(name, backend): (&String, &Arc<Layered>)| (name.clone(), backend.clone() as Arc<dyn DynBackend>);
    let backends: BTreeMap<String, Arc<dyn DynBackend>> = layered.iter().map(erased).collect();
    tokio::select! {
        fit = fit(&backends) => fit?,
        name = signals.next() => { tracing::info!("{name} while starting"); return Ok(()) }
    }
    let (clock, origin) = (Arc::new(HybridClock::default()), Version::draw_origin());
    let shared = backends.values().any(|backend| backend.capability().shared);
    let cache = Cache::open(&settings.cache, &settings.nats, shared, origin, clock.clone()).await?;
    running.set_cache(&cache);
    let mut store = Store::new(&settings.namespaces, &backends, cache.clone(), clock, origin)?;
    let queue = match &settings.queue {
        Some(wanted) => {
            let queue = Queue::open(wanted, &format!("datastore {origin:016x}"), lane_shards(&layered))?;
            store = store.with_queue(queue.clone(), layered.clone());
            Some(queue)
        }
        None => None,
    };
    let store = Arc::new(store);
    if let Some(queue) = &queue {
        let members = cache.clone();
        queue.start(store.clone(), origin, move || members.workers(origin));
        running.set_queue(queue);
    }
    let sweeps = tokio::spawn(control::sweep::run(backends.clone(), stop.clone()));

    let url = redact_url(&settings.nats.url);
    let prefix = settings.nats.subject_prefix.clone();
    let nats = server::Settings { nats: settings.nats, max_in_flight: settings.max_in_flight };
    let server = Arc::new(Server::start(nats, store, claims(&backends)).await?);
    running.set_server(&server);
    let announced = tokio::spawn(announce(server.serving(), url, prefix));
    let held = tokio::spawn(hold(server.clone(), backends.clone()));

    let name = signals.next().await;
    tracing::info!("{name}: taking no more requests");
    announced.abort();
    held.abort();
    server.stop().await;
    if let Some(queue) = &queue {
        queue.stop().await;
    }
    cache.close().await;
    tracing::info!("requests in hand are answered; closing the stores");
    stop.cancel();
    for (name, backend) in &backends {
        if tokio::time::timeout(CLOSE_WAIT, backend.close()).await.is_err() {
            tracing::warn!(
                backend = name,
                "the store did not close in time; what it acknowledged is on disk"
            );
        }
    }
    // Both end by the token, but a connection that somebody holds open would keep HTTP for as long as he likes.
    let ended = async { drop(tokio::join!(http, sweeps)) };
    drop(tokio::time::timeout(LAST_TASKS_WAIT, ended).await);
    tracing::info!("stopped");
    Ok(())
}

async fn open(
    settings: &BTreeMap<String, backend::Settings>,
) -> Result<BTreeMap<String, Arc<dyn DynBackend>>> {
    let mut backends: BTreeMap<String, Arc<dyn DynBackend>> = BTreeMap::new();
    for (name, settings) in settings {
        let backend: Arc<dyn DynBackend> = match settings {
            backend::Settings::Memory => Arc::new(Memory::new()),
            backend::Settings::Postgres(settings) => Arc::new(PostgreSql::open(settings)?),
            backend::Settings::Redis(settings) => Arc::new(RedisStore::open(settings)?),
            backend::Settings::Riak(settings) => Arc::new(Riak::open(settings)?),
            backend::Settings::Local { path } => {
                let lock = DirectoryLock::acquire(path).await?;
                let opened = tokio::task::spawn_blocking(move || Local::open(lock)).await;
                let local =
                    opened.map_err(|panic| Error::internal(format!("opening a store failed: {panic}")))??;
                tracing::info!(backend = name, path = %path.display(), "store open");
                Arc::new(local)
            }
        };
        backends.insert(name.clone(), backend);
    }
    Ok(backends)
}

/// Waits until this worker can serve from each of its stores, or a store is merely not there: that it answers. An error where it
/// never can, as it is configured.
async fn fit(backends: &BTreeMap<String, Arc<dyn DynBackend>>) -> Result<()> {
    let mut told = None;
    loop {
        let Some((name, error)) = unfit(backends) else { return Ok(()) };
        if error.code == Code::Internal {
            return Err(error.at(&format!("backend {name:?}")));
        }
        // What is only not known yet is known in a moment.
        if told.as_ref().is_some_and(|told| *told != error.message) {
            tracing::warn!(backend = name, "taking no requests yet: {}", error.message);
        }
        told = Some(error.message);
        tokio::time::sleep(FIT_PAUSE).await;
    }
}

/// Leaves requests to other workers while this one cannot serve from one of its stores, which they may.
async fn hold(server: Arc<Server>, backends: BTreeMap<String, Arc<dyn DynBackend>>) {
    loop {
        let reason = unfit(&backends).map(|(name, error)| format!("backend {name:?}: {}", error.message));
        server.hold(reason);
        tokio::time::sleep(HOLD_PAUSE).await;
    }
}

fn unfit(backends: &BTreeMap<String, Arc<dyn DynBackend>>) -> Option<(&String, Error)> {
    backends.iter().find_map(|(name, backend)| Some((name, backend.unfit()?)))
}

/// The shards that lanes belong to: all there are, so that no lane is left alone when a namespace's policy changes.
fn lane_shards(backends: &BTreeMap<String, Arc<Layered>>) -> Vec<LaneShard> {
    let of = |(name, backend): (&String, &Arc<Layered>)| {
        let shard = |shard| LaneShard { backend: name.clone(), shard };
        DynBackend::shards(&**backend).into_iter().map(shard).collect::<Vec<_>>()
    };
    backends.iter().flat_map(of).collect()
}

/// Each backend with its layers around it.
fn layers(
    backends: BTreeMap<String, Arc<dyn DynBackend>>,
    settings: &BTreeMap<String, layer::Settings>,
) -> BTreeMap<String, Arc<Layered>> {
    let layered = |(name, backend): (String, Arc<dyn DynBackend>)| {
        let bounds = settings.get(&name).cloned().unwrap_or_default();
        let layered = Arc::new(Layered::new(&name, backend, &bounds));
        (name, layered)
    };
    backends.into_iter().map(layered).collect()
}

/// The embedded stores among the backends.
fn claims(backends: &BTreeMap<String, Arc<dyn DynBackend>>) -> Vec<Claim> {
    let claim = |(name, backend): (&String, &Arc<dyn DynBackend>)| {
        Some(Claim { backend: name.clone(), store_id: backend.store_id()? })
    };
    backends.iter().filter_map(claim).collect()
}

/// Says when requests are answered, and where.
async fn announce(mut serving: watch::Receiver<Serving>, url: String, prefix: String) {
    if serving.wait_for(|serving| *serving == Serving::Yes).await.is_ok() {
        tracing::info!("ready: answering {prefix}.v1.*.* at {url}");
    }
}

/// What `/readyz` looks at; parts that have not started yet are missing.
#[derive(Default)]
struct Running {
    backends: Mutex<BTreeMap<String, Arc<Layered>>>,
    server: Mutex<Option<Joined>>,
    cache: Mutex<Option<Arc<Cache>>>,
    queue: Mutex<Option<Arc<Queue>>>,
}

/// What `/readyz` asks of the NATS side.
#[derive(Clone)]
struct Joined {
    serving: watch::Receiver<Serving>,
    connected: Arc<dyn Fn() -> bool + Send + Sync>,
}

impl Running {
    fn set_backends(&self, backends: &BTreeMap<String, Arc<Layered>>) {
        *self.backends.lock().unwrap_or_else(PoisonError::into_inner) = backends.clone();
    }

    fn set_cache(&self, cache: &Arc<Cache>) {
        *self.cache.lock().unwrap_or_else(PoisonError::into_inner) = Some(cache.clone());
    }

    fn set_queue(&self, queue: &Arc<Queue>) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Some(queue.clone());
    }

    fn set_server(&self, server: &Server) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Joined { serving: server.serving(), connected: server.connection() });
    }

    /// Ready = can answer: connected, taking requests, and at least one backend well.
    fn readiness(&self) -> Readiness {
        let mut parts = BTreeMap::new();
        let backends = self.backends.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, backend) in &backends {
            let health = DynBackend::health(&**backend);
            let detail =
                health.as_ref().err().map_or_else(|| "open".to_owned(), |error| error.message.clone());
            parts.insert(format!("backend.{name}"), (health.is_ok(), detail));
            for state in backend
                .states()
                .into_iter()
                .filter(|state| state.breaker != "closed" && state.work != "drains")
            {
                let part = format!("backend.{name}.{}.{}", state.shard, state.work);
                parts.insert(part, (false, format!("circuit {}: {}", state.breaker, state.reason)));
            }
        }
        let well = |backend: &Arc<Layered>| DynBackend::health(&**backend).is_ok();
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let queue = queue.map(|queue| (queue.state(), queue.overlay().health()));
        // Writes are answered while there is a queue that takes them.
        let queues = queue.as_ref().is_some_and(|(state, _)| state.is_ok());
        let answers = backends.is_empty() || backends.values().any(well) || queues;
        if let Some((state, overlay)) = queue {
            let told = |state: Result<(), String>| {
                (state.is_ok(), state.err().unwrap_or_else(|| "in use".to_owned()))
            };
            parts.insert("queue".to_owned(), told(state));
            parts.insert("queue.overlay".to_owned(), told(overlay));
        }
        // A tier is a help: one that is passed by keeps nobody from being answered.
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (part, health) in cache.iter().flat_map(|cache| cache.health()) {
            let (ok, Ok(detail) | Err(detail)) = (health.is_ok(), health);
            parts.insert(part.to_owned(), (ok, detail));
        }
        let server = self.server.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (connected, serving) = match server {
            None => (false, Serving::Starting),
            Some(joined) => ((joined.connected)(), joined.serving.borrow().clone()),
        };
        parts.insert(
            "nats".to_owned(),
            (connected, if connected { "connected" } else { "not connected" }.to_owned()),
        );
        let word = match &serving {
            Serving::Starting | Serving::Allowed => "starting".to_owned(),
            Serving::Yes => "taking requests".to_owned(),
            Serving::Refused(reason) | Serving::Held(reason) => reason.clone(),
            Serving::Stopping => "stopping".to_owned(),
        };
        parts.insert("serving".to_owned(), (serving == Serving::Yes, word));
        // Whoever is not heard leaves old copies with the others.
        let heard = cache.iter().all(|cache| cache.is_heard());
        Readiness { ready: connected && serving == Serving::Yes && answers && heard, parts }
    }
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let failed = |error: std::io::Error| Error::internal(format!("cannot listen for signals: {error}"));
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
