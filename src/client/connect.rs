//! Connecting to NATS: the settings that the worker and the client share.

use std::time::Duration;

/// How to reach the NATS servers. Secrets never print.
#[derive(Clone)]
pub struct NatsSettings {
    /// Server URLs, comma separated.
    pub url: String,
    /// Path of a `.creds` file, "" = none.
    pub credentials_file: String,
    /// User name, "" = none.
    pub user: String,
    /// Password of `user`.
    pub password: String,
    /// Token, "" = none.
    pub token: String,
    /// Path of an nkey seed file, "" = none.
    pub nkey_file: String,
    /// Path of a PEM file with extra certificate authorities, "" = the system's alone.
    pub tls_ca_file: String,
    /// Path of the client's PEM certificate, "" = none.
    pub tls_cert_file: String,
    /// Path of the client's PEM key.
    pub tls_key_file: String,
    /// First token(s) of every subject.
    pub subject_prefix: String,
}

impl Default for NatsSettings {
    fn default() -> Self {
        let none = String::new;
        Self {
            url: "nats://127.0.0.1:4222".to_owned(),
            credentials_file: none(),
            user: none(),
            password: none(),
            token: none(),
            nkey_file: none(),
            tls_ca_file: none(),
            tls_cert_file: none(),
            tls_key_file: none(),
            subject_prefix: "ds".to_owned(),
        }
    }
}

impl std::fmt::Debug for NatsSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsSettings")
            .field("url", &redact_url(&self.url))
            .field("subject_prefix", &self.subject_prefix)
            .finish_non_exhaustive()
    }
}

/// URLs with what stands before an `@` (user, password, token) replaced by `***`.
pub fn redact_url(urls: &str) -> String {
    let one = |url: &str| match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if at > scheme => format!("{}***{}", &url[..scheme + 3], &url[at..]),
        (None, Some(at)) => format!("***{}", &url[at..]),
        _ => url.to_owned(),
    };
    urls.split(',').map(|url| one(url.trim())).collect::<Vec<_>>().join(",")
}

/// A half-open connection is noticed after two of these.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Longest wait between two attempts to connect.
const RECONNECT_DELAY_MAX: Duration = Duration::from_millis(500);
/// Bound on one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

impl NatsSettings {
    /// The client library's options for these settings. The caller adds event handling and capacity.
    pub async fn options(&self) -> std::io::Result<async_nats::ConnectOptions> {
        let mut options = async_nats::ConnectOptions::new();
        if !self.credentials_file.is_empty() {
            options = options.credentials_file(&self.credentials_file).await?;
        }
        if !self.nkey_file.is_empty() {
            let seed = std::fs::read_to_string(&self.nkey_file)?;
            options = options.nkey(seed.trim().to_owned());
        }
        if !self.token.is_empty() {
            options = options.token(self.token.clone());
        }
        if !self.user.is_empty() {
            options = options.user_and_password(self.user.clone(), self.password.clone());
        }
        if !self.tls_ca_file.is_empty() {
            options = options.add_root_certificates(self.tls_ca_file.clone().into());
        }
        if !self.tls_cert_file.is_empty() {
            options = options
                .add_client_certificate(self.tls_cert_file.clone().into(), self.tls_key_file.clone().into());
        }
        Ok(options.ping_interval(PING_INTERVAL).connection_timeout(CONNECT_TIMEOUT).reconnect_delay_callback(
            |attempt| {
                let doubled = Duration::from_millis(10 << attempt.min(6));
                doubled.min(RECONNECT_DELAY_MAX)
            },
        ))
    }

    /// The server addresses.
    pub fn servers(&self) -> Vec<String> {
        self.url.split(',').map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()).collect()
    }
}
