//! The transport alone: a process that sends each message back, and the calls to it over the client's own inbox.
//!
//! The responder is a child of the bench, ends when its standard input does, and so never outlives it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt;

use crate::cli::Session;
use crate::cli::output::{Ended, Fault};
use crate::cli::settings;
use crate::client::Client;

/// What the responder prints once it answers.
const READY: &str = "ready";
/// Messages that may wait for the responder.
const ECHOES_MAX: usize = 65_536;

/// A responder, and what is sent to it.
pub(super) struct Echo {
    client: Client,
    subject: String,
    payload: Bytes,
    timeout: Duration,
    child: Child,
}

impl Echo {
    pub(super) async fn start(session: &Session, client: &Client, bytes: usize) -> Result<Self, Fault> {
        let failed = |error: std::io::Error| Fault::input(format!("cannot start the echo: {error}"));
        let subject = format!("{}.bench-echo.{:016x}", client.subject_prefix(), fastrand::u64(..));
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.args(["bench-echo", &subject]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // What came as a flag goes on through the environment, where a URL's secrets are not listed.
        if let Some(url) = &session.connection.nats {
            command.env("DATASTORE__NATS__URL", url);
        }
        let mut child = command.spawn().map_err(failed)?;
        let output = child.stdout.take().expect("standard output is piped");
        let echo = Self {
            client: client.clone(),
            subject,
            payload: vec![b'e'; bytes].into(),
            timeout: session.connection.timeout,
            child,
        };
        let first = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        match first.await {
            Ok(Ok(line)) if line.trim() == READY => Ok(echo),
            _ => Err(Fault::input("the echo did not start")),
        }
    }

    /// One message there and back, without headers, as gets are sent.
    pub(super) async fn send(&self) -> Result<(), String> {
        let (subject, payload) = (self.subject.clone(), self.payload.clone());
        match self.client.exchange(subject, HeaderMap::new(), payload, self.timeout).await {
            Ok(_) => Ok(()),
            Err(unanswered) => Err(unanswered.into_error(&self.subject).code.word().to_owned()),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The responder's process.
pub(in crate::cli) async fn respond(session: &Session, subject: &str) -> Ended {
    let nats = settings::load(None, &session.connection)?.settings.nats;
    let told = |error: String| Fault::input(format!("echo: {error}"));
    let options = nats.options().await.map_err(|error| told(error.to_string()))?;
    let connect = options.subscription_capacity(ECHOES_MAX).connect(nats.servers());
    let client = match tokio::time::timeout(session.connection.timeout, connect).await {
        Ok(connected) => connected.map_err(|error| told(error.to_string()))?,
        Err(_) => return Err(told("no answer from NATS".to_owned())),
    };
    let mut messages = client.subscribe(subject.to_owned()).await.map_err(|error| told(error.to_string()))?;
    client.flush().await.map_err(|error| told(error.to_string()))?;
    let mut output = super::Output::new(false);
    output.line(READY)?;
    output.flush()?;

    let (gone, mut parent_gone) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        drop(std::io::stdin().read(&mut [0]));
        drop(gone);
    });
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return Ok(ExitCode::SUCCESS) };
                if let Some(reply) = message.reply {
                    client.publish(reply, message.payload).await.map_err(|error| told(error.to_string()))?;
                }
            }
            _ = &mut parent_gone => return Ok(ExitCode::SUCCESS),
        }
    }
}
