//! A tree as it may be shown: secrets hidden, in the order of the table of keys.
//!
//! Hidden is the whole value of a secret key, and in a URL whatever may be a login. What cannot be told
//! apart is hidden too.

use toml::{Table, Value};

use super::keys::{self, Hides, KeyPath};

/// What stands in place of a secret.
const HIDDEN: &str = "***";
/// A URL's parameter whose name holds one of these is a secret.
const SECRET_WORDS: [&str; 5] = ["pas", "pwd", "token", "secret", "key"];

/// A copy of a tree with the secrets hidden: keys in the order of their table, names in theirs.
pub(super) fn masked(tree: &Table) -> Table {
    masked_below(&KeyPath::default(), tree)
}

fn masked_below(at: &KeyPath, table: &Table) -> Table {
    let mut entries: Vec<(&String, &Value)> = table.iter().collect();
    entries.sort_by_key(|(name, _)| (keys::position(&at.child(name)), *name));
    entries.into_iter().map(|(name, value)| (name.clone(), masked_value(&at.child(name), value))).collect()
}

fn masked_value(path: &KeyPath, value: &Value) -> Value {
    let element = |(at, element)| masked_value(&path.element(at), element);
    match (value, hides(path)) {
        (Value::Table(table), _) => Value::Table(masked_below(path, table)),
        (Value::Array(elements), _) => Value::Array(elements.iter().enumerate().map(element).collect()),
        (Value::String(text), hides) => Value::String(mask(hides, text)),
        (_, Hides::All) => Value::String(HIDDEN.to_owned()),
        (other, _) => other.clone(),
    }
}

/// What to hide of the key at a path, or of the list that the path is an element of.
fn hides(path: &KeyPath) -> Hides {
    let list = path.names().split_last().map(|(_, list)| KeyPath::of(list));
    let key = keys::find(path).or_else(|| keys::find(&list?));
    key.map_or(Hides::Nothing, |key| key.hides)
}

/// A text with what is secret in it hidden. An empty one stays empty: that nothing is set is no secret.
pub(super) fn mask(hides: Hides, text: &str) -> String {
    match hides {
        Hides::Nothing => text.to_owned(),
        Hides::All if text.is_empty() => String::new(),
        Hides::All => HIDDEN.to_owned(),
        Hides::UrlLogin => split_urls(text).into_iter().map(mask_url).collect::<Vec<_>>().join(","),
    }
}

/// Cuts at commas that another URL follows; a password may hold others.
fn split_urls(text: &str) -> Vec<&str> {
    let mut urls = Vec::new();
    let mut start = 0;
    for (comma, _) in text.match_indices(',') {
        let next = text[comma + 1..].trim_start();
        let scheme = next.split_once("://").map_or("", |(scheme, _)| scheme);
        if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+') {
            urls.push(&text[start..comma]);
            start = comma + 1;
        }
    }
    urls.push(&text[start..]);
    urls
}

fn mask_url(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    let rest = match url.rfind('@').filter(|at| *at >= start) {
        Some(at) => format!("{HIDDEN}{}", &url[at..]),
        None => url[start..].to_owned(),
    };
    format!("{}{}", &url[..start], mask_parameters(&rest))
}

/// Hides the values of parameters such as `?password=`.
fn mask_parameters(rest: &str) -> String {
    let Some((place, parameters)) = rest.split_once('?') else { return rest.to_owned() };
    let one = |parameter: &str| match parameter.split_once('=') {
        Some((name, _)) if SECRET_WORDS.iter().any(|word| name.to_lowercase().contains(word)) => {
            format!("{name}={HIDDEN}")
        }
        _ => parameter.to_owned(),
    };
    format!("{place}?{}", parameters.split('&').map(one).collect::<Vec<_>>().join("&"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_may_be_a_login_is_hidden() {
        let cases = [
            ("nats://h:4222", "nats://h:4222"),
            ("nats://u:p@h:4222", "nats://***@h:4222"),
            ("nats://token@h", "nats://***@h"),
            ("nats://u:p@a,nats://b, tls://v:q@c", "nats://***@a,nats://b, tls://***@c"),
            ("nats://u:p,ss@h", "nats://***@h"),
            ("amqp://u:p@@h/%2f", "amqp://***@h/%2f"),
            ("u:p@h", "***@h"),
            (
                "postgres://h/d?user=u&password=p&sslmode=require",
                "postgres://h/d?user=u&password=***&sslmode=require",
            ),
            ("", ""),
        ];
        for (url, shown) in cases {
            assert_eq!(mask(Hides::UrlLogin, url), shown, "{url}");
        }
        assert_eq!((mask(Hides::All, "x").as_str(), mask(Hides::All, "").as_str()), ("***", ""));
    }
}
