//! One node: its connections, each with one request at a time, and whether it is to be avoided.
//!
//! A connection serves one request after another, because a node answers each in turn and holds small replies back while more
//! requests lie in its input. It is thrown away after anything but a reply that belongs to the request or an error that leaves
//! it sound; a request whose caller has gone takes its connection with it. The one that was used last is used next, so that
//! what is idle stays idle.
//!
//! There are only so many places for requests. Who waits for one goes elsewhere as soon as the node is found not to be well,
//! and the queries that may take long have places of their own, so that they never stand in the way of the others.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use super::classify::{Fault, classify};
use super::wire::{self, Frame, NoReply, Request};

/// Connections that are being opened at once: a node's backlog is 128, and what does not fit there waits a second.
const OPENING_MAX: usize = 4;
/// How much longer than the node the caller waits, so that a node that gives up can say so.
pub(super) const ANSWER_GRACE: Duration = Duration::from_millis(100);
/// Patient requests at one node at once, beside the others: while a part of the cluster hangs each of them may last seconds.
const PATIENT_PLACES: usize = 4;

/// Which places a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// Of one key: the pool's.
    Quick,
    /// Of an index: some few of their own.
    Patient,
}

/// See the module.
pub(super) struct Node {
    /// Where it is.
    pub(super) address: String,
    connect_timeout: Duration,
    places: Semaphore,
    patient_places: Semaphore,
    /// Tells those in line that the node is to be avoided.
    failed: Notify,
    opening: Semaphore,
    idle: Mutex<Vec<TcpStream>>,
    in_flight: AtomicUsize,
    /// Why it is avoided.
    blame: Mutex<Option<String>>,
    closed: AtomicBool,
}

impl Node {
    pub(super) fn new(address: String, pool_size: usize, connect_timeout: Duration) -> Self {
        Self {
            address,
            connect_timeout,
            places: Semaphore::new(pool_size),
            patient_places: Semaphore::new(PATIENT_PLACES),
            failed: Notify::new(),
            opening: Semaphore::new(OPENING_MAX),
            idle: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            blame: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Waits for a place: for so long, nobody beyond the deadline, and only while the node is well.
    pub(super) async fn enter(
        &self,
        line: Line,
        wait: Duration,
        deadline: Instant,
    ) -> Result<Turn<'_>, Fault> {
        let flying = Flying::new(&self.in_flight);
        let until = deadline.min(Instant::now() + wait + ANSWER_GRACE);
        let places = match line {
            Line::Quick => &self.places,
            Line::Patient => &self.patient_places,
        };
        tokio::select! {
            // A place that comes free because its request failed is no place to go to.
            biased;
            () = self.failed.notified() => Err(Fault::left_line(&self.address)),
            place = timeout_at(until, places.acquire()) => match place {
                Ok(Ok(place)) => Ok(Turn { node: self, _place: place, _flying: flying }),
                _ => Err(Fault::crowded(&self.address)),
            },
        }
    }

    async fn exchange<R: Request>(
        &self,
        request: &R,
        wait: Duration,
        deadline: Instant,
    ) -> Result<R::Reply, Fault> {
        let begun = Instant::now();
        let until = deadline.min(begun + wait + ANSWER_GRACE);
        let mut stream = match self.rested() {
            Some(stream) => stream,
            None => self.connect(until).await?,
        };
        let frame = wire::encode(request);
        let frame = match timeout_at(until, exchange(&mut stream, &frame)).await {
            Err(_) => return Err(Fault::silent(&self.address, begun.elapsed())),
            Ok(Err(error)) => return Err(Fault::lost(&self.address, &format!("connection: {error}"))),
            Ok(Ok(frame)) => frame,
        };
        match wire::reply::<R>(frame) {
            Ok(reply) => {
                self.rest(stream);
                Ok(reply)
            }
            Err(NoReply::Strange(why)) => Err(Fault::lost(&self.address, &why)),
            Err(NoReply::Error(text)) => {
                let fault = classify(&self.address, &text);
                if fault.spoils_connection {
                    tracing::warn!(node = self.address, "{}", fault.error.message);
                } else {
                    self.rest(stream);
                }
                Err(fault)
            }
        }
    }

    /// A connection that nobody uses and that has not been closed meanwhile.
    fn rested(&self) -> Option<TcpStream> {
        loop {
            let stream = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            // Nothing may have come: an end, an error and bytes that belong to no request are all reasons to drop it.
            match stream.try_read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(stream),
                _ => {}
            }
        }
    }

    fn rest(&self, stream: TcpStream) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.closed.load(Ordering::Acquire) {
            idle.push(stream);
        }
    }

    async fn connect(&self, until: Instant) -> Result<TcpStream, Fault> {
        let begun = Instant::now();
        let until = until.min(begun + self.connect_timeout);
        let connect = async {
            let _opening = self.opening.acquire().await.map_err(io::Error::other)?;
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in lookup_host(&self.address).await? {
                match open(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        match timeout_at(until, connect).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(Fault::unreachable(&self.address, &format!("connection: {error}"))),
            Err(_) => Err(Fault::slow_to_connect(&self.address, begun.elapsed())),
        }
    }

    /// Requests it has in hand.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Why it is avoided, if it is.
    pub(super) fn blamed(&self) -> Option<String> {
        self.blame.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn blame(&self, why: &str) {
        let mut blame = self.blame.lock().unwrap_or_else(PoisonError::into_inner);
        if blame.is_none() {
            tracing::warn!(node = self.address, "{why}; it is avoided until it answers again");
        }
        *blame = Some(why.to_owned());
        drop(blame);
        // What else is open there is most likely of no use either, and would cost its caller a wait.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.failed.notify_waiters();
    }

    fn absolve(&self) {
        let mut blame = self.blame.lock().unwrap_or_else(PoisonError::into_inner);
        if blame.take().is_some() {
            tracing::info!(node = self.address, "answers again");
        }
    }

    /// Closes what is idle, and what comes back.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A place at a node, for one request.
pub(super) struct Turn<'n> {
    node: &'n Node,
    _place: SemaphorePermit<'n>,
    _flying: Flying<'n>,
}

impl Turn<'_> {
    /// Sends a request and waits for its reply: the node so long as `wait`, the caller a little longer, nobody beyond the
    /// deadline.
    pub(super) async fn ask<R: Request>(
        self,
        request: &R,
        wait: Duration,
        deadline: Instant,
    ) -> Result<R::Reply, Fault> {
        let node = self.node;
        let asked = node.exchange(request, wait, deadline).await;
        // The place is kept until the node is judged: those in line must know before one of them gets it.
        match &asked {
            Ok(_) => node.absolve(),
            Err(fault) if fault.blames_node => node.blame(&fault.error.message),
            Err(_) => {}
        }
        asked
    }

    /// The same without a word on how the node is.
    pub(super) async fn ask_gently<R: Request>(
        self,
        request: &R,
        wait: Duration,
        deadline: Instant,
    ) -> Result<R::Reply, Fault> {
        self.node.exchange(request, wait, deadline).await
    }
}

async fn open(address: std::net::SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_keepalive(true)?;
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn exchange(stream: &mut TcpStream, request: &Bytes) -> io::Result<Frame> {
    stream.write_all(request).await?;
    wire::read_frame(stream).await
}

/// Counts a request for as long as it lives, also where its caller goes.
struct Flying<'n>(&'n AtomicUsize);

impl<'n> Flying<'n> {
    fn new(count: &'n AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
