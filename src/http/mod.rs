//! Health over HTTP: `/livez` says the process runs, `/readyz` that it can answer requests.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Where the worker answers HTTP.
#[derive(Clone)]
pub struct Settings {
    /// Address to listen at; `None` turns it off.
    pub listen: Option<SocketAddr>,
    /// Bearer token that details ask for, "" = none; required when `listen` is not loopback.
    pub token: String,
}

/// The token does not print.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").field("listen", &self.listen).finish_non_exhaustive()
    }
}

/// Whether the worker can answer, and why (not).
#[derive(Debug, Clone)]
pub struct Readiness {
    /// It can.
    pub ready: bool,
    /// Each part by name: whether it is well, and a word about it.
    pub parts: BTreeMap<String, (bool, String)>,
}

/// What `/readyz` asks.
pub type Probe = Arc<dyn Fn() -> Readiness + Send + Sync>;

/// Between two tries to listen: the port may belong to a worker that is about to stop.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone)]
struct Health {
    probe: Probe,
    token: Arc<str>,
}

/// Answers until stopped. A port in use is no reason to stop serving NATS: it is told and tried again.
pub async fn run(settings: Settings, probe: Probe, stop: CancellationToken) {
    let Some(address) = settings.listen else {
        return;
    };
    let health = Health { probe, token: settings.token.into() };
    let router = Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).with_state(health);
    let stopped = stop.clone();
    tokio::select! {
        () = stopped.cancelled() => {}
        listener = listen(address) => {
            let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
            if let Err(error) = served {
                tracing::error!(%error, "HTTP stopped");
            }
        }
    }
}

async fn listen(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tracing::info!("health at http://{address}/livez and /readyz");
                return listener;
            }
            Err(error) if !told => {
                tracing::warn!(
                    "cannot listen at {address} for HTTP: {error}; trying again, NATS is served all the same"
                );
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(LISTEN_PAUSE).await;
    }
}

async fn livez() -> &'static str {
    "ok\n"
}

/// The status needs no token, so that any probe can read it; the parts do where one is set.
async fn readyz(State(health): State<Health>, headers: HeaderMap) -> Response {
    let readiness = (health.probe)();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = json!({"ready": readiness.ready});
    if health.allows(&headers) {
        let part = |(ok, detail): &(bool, String)| json!({"ok": ok, "detail": detail});
        body["parts"] = readiness.parts.iter().map(|(name, found)| (name.clone(), part(found))).collect();
    }
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}

impl Health {
    fn allows(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let given = given.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or("");
        self.token.is_empty() || same(given.as_bytes(), self.token.as_bytes())
    }
}

/// Compares without telling by its time how much was right.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
