//! A double of a Riak cluster: real sockets and framing, objects with clocks and siblings, nodes that fail.
//!
//! There is no package of Riak to run here, so this stands in its place, and is held against what a real 3.2.3 server was
//! recorded to say (`tests/golden/riak`, played by `src/backend/riak/tests/recorded.rs`). Where `DATASTORE_TEST_RIAK` names a
//! real node (`host:port`, with a bucket type `datastore`), the behaviour suites and the tests in `src/backend/riak/tests` that
//! need no failing nodes run on that one.

pub(crate) mod cluster;
pub(crate) mod fields;
pub(crate) mod object;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use cluster::{Answer, BucketType, Cluster, Health};
use fields::Fields;

/// The bucket type of the tests.
pub(crate) const BUCKET_TYPE: &str = "datastore";
/// Between two looks of a connection at whether its node is still silent.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A cluster; its nodes listen until it is dropped.
pub(crate) struct Riak {
    cluster: Arc<Mutex<Cluster>>,
    ports: Vec<u16>,
    listening: Mutex<Vec<Option<Listening>>>,
}

/// A node that takes connections.
struct Listening {
    stop: Arc<AtomicBool>,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Riak {
    /// The cluster of this run; every test keeps to buckets of its own.
    pub(crate) fn shared() -> &'static Riak {
        static SHARED: OnceLock<Riak> = OnceLock::new();
        SHARED.get_or_init(|| Riak::start(3))
    }

    /// A real node, where there is one.
    pub(crate) fn real() -> Option<String> {
        static REAL: OnceLock<Option<String>> = OnceLock::new();
        let real = REAL.get_or_init(|| {
            let real = std::env::var("DATASTORE_TEST_RIAK").ok().filter(|host| !host.is_empty());
            let said = match &real {
                Some(host) => format!("Riak: the tests run on the real node {host}\n"),
                None => {
                    "Riak: the tests run on the double; DATASTORE_TEST_RIAK=host:port names a real node\n"
                        .to_owned()
                }
            };
            // Straight to the terminal: what a test prints is shown only if it fails.
            let _ = std::io::stderr().write_all(said.as_bytes());
            real
        });
        real.clone()
    }

    /// Where the tests' Riak is: a real node, or the cluster of this run.
    pub(crate) fn hosts_of_run() -> Vec<String> {
        Riak::real().map_or_else(|| Riak::shared().hosts(), |host| vec![host])
    }

    /// A cluster for one test alone, with a bucket type that is fit.
    pub(crate) fn start(nodes: usize) -> Riak {
        let mut cluster = Cluster::new(nodes);
        cluster.types.insert(BUCKET_TYPE.to_owned(), BucketType::new());
        let listeners: Vec<_> = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        let cluster = Arc::new(Mutex::new(cluster));
        let listening = listeners.into_iter().enumerate();
        let listening = listening.map(|(node, listener)| Some(listen(node, listener, cluster.clone())));
        let listening = Mutex::new(listening.collect());
        Riak { cluster, ports, listening }
    }

    /// What its nodes know.
    pub(crate) fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.cluster.lock().unwrap()
    }

    pub(crate) fn hosts(&self) -> Vec<String> {
        self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    pub(crate) fn port(&self, node: usize) -> u16 {
        self.ports[node]
    }

    /// Changes how a node is, without ending its connections.
    pub(crate) fn set(&self, node: usize, health: Health) {
        self.cluster().health[node] = health;
    }

    /// Ends a node: connections are cut, new ones refused, its replicas are stood in for.
    pub(crate) fn stop(&self, node: usize) {
        self.set(node, Health::Down);
        if let Some(listening) = self.listening.lock().unwrap()[node].take() {
            listening.end(self.ports[node]);
        }
    }

    /// Starts it again, on the same port, and hands over what was written meanwhile.
    pub(crate) fn restart(&self, node: usize) {
        let listener = TcpListener::bind(("127.0.0.1", self.ports[node])).unwrap();
        self.listening.lock().unwrap()[node] = Some(listen(node, listener, self.cluster.clone()));
        let mut cluster = self.cluster();
        cluster.health[node] = Health::Up;
        cluster.hand_off(node);
    }
}

impl Drop for Riak {
    fn drop(&mut self) {
        for (node, listening) in self.listening.lock().unwrap().iter_mut().enumerate() {
            if let Some(listening) = listening.take() {
                listening.end(self.ports[node]);
            }
        }
    }
}

impl Listening {
    fn end(self, port: u16) {
        self.stop.store(true, Ordering::Release);
        // Wakes the listener, which then closes.
        let _ = TcpStream::connect(("127.0.0.1", port));
        for stream in self.connections.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        // The port is free once the listener is gone: whoever connects now is refused.
        for _ in 0..1000 {
            if TcpStream::connect(("127.0.0.1", port)).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn listen(node: usize, listener: TcpListener, cluster: Arc<Mutex<Cluster>>) -> Listening {
    let stop = Arc::new(AtomicBool::new(false));
    let connections: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let (ending, open) = (stop.clone(), connections.clone());
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            if ending.load(Ordering::Acquire) {
                return;
            }
            let _ = stream.set_nodelay(true);
            open.lock().unwrap().extend(stream.try_clone());
            let cluster = cluster.clone();
            std::thread::spawn(move || serve(node, stream, &cluster));
        }
    });
    Listening { stop, connections }
}

/// One connection, as a node serves it: strictly one request after another. An end of it is nobody's fault.
fn serve(node: usize, mut stream: TcpStream, cluster: &Mutex<Cluster>) {
    let mut length = [0; 4];
    while stream.read_exact(&mut length).is_ok() {
        let length = u32::from_be_bytes(length) as usize;
        if length == 0 {
            break;
        }
        if length >= 0x7fff_fffc {
            let _ = send(&mut stream, 0, &error("Invalid message packet, reason: invalid"));
            // The connection is deaf from here on.
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
            return;
        }
        let mut frame = vec![0; length];
        if stream.read_exact(&mut frame).is_err() {
            break;
        }
        while cluster.lock().unwrap().health[node] == Health::Silent {
            std::thread::sleep(LOOK_EVERY);
        }
        let answer = cluster.lock().unwrap().answer(node, frame[0], &frame[1..]);
        let sent = match answer {
            Answer::Reply(code, fields) => send(&mut stream, code, &fields),
            Answer::Stream(frames) => {
                frames.iter().try_for_each(|(code, fields)| send(&mut stream, *code, fields))
            }
            Answer::Error(text) => send(&mut stream, 0, &error(&text)),
            Answer::TimedOut(ms) => {
                std::thread::sleep(Duration::from_millis(ms));
                send(&mut stream, 0, &error("timeout"))
            }
            Answer::Crash(why) => {
                let _ =
                    send(&mut stream, 0, &error(&format!("Error processing incoming message: error:{why}")));
                break;
            }
            Answer::Never => {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
                return;
            }
        };
        if sent.is_err() {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

fn error(text: &str) -> Fields {
    Fields::default().with(1, text).with_number(2, 0)
}

fn send(stream: &mut TcpStream, code: u8, fields: &Fields) -> std::io::Result<()> {
    let message = fields.write();
    let length = u32::try_from(message.len() + 1).unwrap();
    stream.write_all(&[&length.to_be_bytes()[..], &[code], &message].concat())
}
