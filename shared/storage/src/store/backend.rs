//! From a URL and settings to the client of an object store.

use std::{
    fs::File,
    io,
    net::IpAddr,
    path::{self, PathBuf},
    str::FromStr,
    sync::Arc,
};

use baton_contract::{causes, without_secrets};
use object_store::{
    ObjectStore,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    local::LocalFileSystem,
    memory::InMemory,
    path::Path,
    prefix::PrefixStore,
};

use super::Error;

/// An opened store, and the directory if it is a local one.
pub(crate) struct Opened {
    pub(crate) inner: Arc<dyn ObjectStore>,
    pub(crate) root: Option<PathBuf>,
}

/// Opens a store; a local one flushes its puts to the disk if `synced`.
pub(crate) fn open(url: &str, vars: impl IntoIterator<Item = (String, String)>, synced: bool) -> Result<Opened, Error> {
    let problem = |problem: String| Error::Url { url: without_secrets(url), problem };
    let setup = |source| Error::Setup { url: without_secrets(url), source: Box::new(source) };

    let Some((scheme, rest)) = url.split_once("://") else {
        return match url {
            "" => Err(problem("expected a directory or a url, found nothing".into())),
            "memory:" => Ok(Opened { inner: Arc::new(InMemory::new()), root: None }),
            path => local(path, synced),
        };
    };
    if scheme == "file" {
        return match rest.starts_with('/') {
            true => local(rest, synced),
            false => Err(problem("expected an absolute path: file:///path/to/directory".into())),
        };
    }

    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = Path::parse(prefix)
        .map_err(|error| problem(format!("the part after the bucket is no path: {}", causes(&error))))?;
    if bucket.is_empty() && ["s3", "gs", "az"].contains(&scheme) {
        return Err(problem(format!("expected a bucket: {scheme}://bucket/prefix")));
    }
    install_tls();
    let vars = vars.into_iter();
    match scheme {
        "s3" => Ok(remote(s3(bucket, vars).map_err(problem)?.build().map_err(setup)?, prefix)),
        "gs" => Ok(remote(gcs(bucket, vars).build().map_err(setup)?, prefix)),
        "az" => Ok(remote(azure(bucket, vars).build().map_err(setup)?, prefix)),
        other => {
            Err(problem(format!("unknown scheme {other:?}: expected a directory, file://, s3://, gs:// or az://")))
        }
    }
}

fn remote(store: impl ObjectStore, prefix: Path) -> Opened {
    let inner: Arc<dyn ObjectStore> =
        if prefix.is_root() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) };
    Opened { inner, root: None }
}

/// A directory, whose puts are fsynced before they return if `synced`.
fn local(path: &str, synced: bool) -> Result<Opened, Error> {
    let opened = create_durably(path::Path::new(path)).and_then(|root| {
        let store = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        Ok(Opened { inner: Arc::new(store.with_fsync(synced)), root: Some(root) })
    });
    opened.map_err(|source| Error::Directory { path: path.into(), source })
}

/// Creates a directory for its owner only, and what is missing above it, so that no loss of power takes it away with what is put there.
fn create_durably(path: &path::Path) -> io::Result<PathBuf> {
    let path = path::absolute(path)?;
    let missing: Vec<_> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    // What users asked and were answered lies in it.
    let mut private = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut private, 0o700);
    private.recursive(true).create(&path)?;
    for parent in missing.iter().filter_map(|dir| dir.parent()) {
        File::open(parent)?.sync_all()?;
    }
    path.canonicalize()
}

/// The settings among `vars` that a client knows: those with its prefix, by their names in lower case.
fn settings<K: FromStr>(
    vars: impl Iterator<Item = (String, String)>,
    prefix: &str,
) -> impl Iterator<Item = (K, String)> {
    vars.filter_map(move |(name, value)| {
        let key = name.starts_with(prefix).then(|| name.to_ascii_lowercase().parse().ok())??;
        Some((key, value))
    })
}

fn s3(bucket: &str, vars: impl Iterator<Item = (String, String)>) -> Result<AmazonS3Builder, String> {
    let mut builder = settings(vars, "AWS_")
        .fold(AmazonS3Builder::new(), |builder, (key, value)| builder.with_config(key, value))
        .with_bucket_name(bucket);
    let setting = |key| builder.get_config_value(&key);
    let endpoint = setting(AmazonS3ConfigKey::S3Endpoint).or_else(|| setting(AmazonS3ConfigKey::Endpoint));
    let allowed = setting(AmazonS3ConfigKey::Client(object_store::ClientConfigKey::AllowHttp));
    if let Some(host) = endpoint.as_deref().and_then(|endpoint| endpoint.strip_prefix("http://")) {
        if is_loopback(host) {
            builder = builder.with_allow_http(true);
        } else if allowed.is_none_or(|allowed| !allowed.eq_ignore_ascii_case("true")) {
            return Err(format!(
                "the endpoint http://{host} has no TLS: use https, or set AWS_ALLOW_HTTP=true if the network is trusted"
            ));
        }
    }
    Ok(builder)
}

fn gcs(bucket: &str, vars: impl Iterator<Item = (String, String)>) -> GoogleCloudStorageBuilder {
    settings::<GoogleConfigKey>(vars, "GOOGLE_")
        .fold(GoogleCloudStorageBuilder::new(), |builder, (key, value)| builder.with_config(key, value))
        .with_bucket_name(bucket)
}

fn azure(container: &str, vars: impl Iterator<Item = (String, String)>) -> MicrosoftAzureBuilder {
    settings::<AzureConfigKey>(vars, "AZURE_")
        .fold(MicrosoftAzureBuilder::new(), |builder, (key, value)| builder.with_config(key, value))
        .with_container_name(container)
}

/// Whether `authority` (host, and perhaps port and path) is this machine.
fn is_loopback(authority: &str) -> bool {
    let authority = authority.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The tree holds one TLS provider, and the HTTP client is built without a default. If the process has one already, it
/// stays.
fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str, vars: &[(&str, &str)]) -> String {
        let vars = vars.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        open(url, vars, true).err().expect("the store should be refused").to_string()
    }

    #[test]
    fn a_url_that_is_wrong_says_what_to_write() {
        assert!(refused("", &[]).contains("expected a directory or a url"));
        assert!(refused("file://data", &[]).contains("file:///path"));
        assert!(refused("s3:///prefix", &[]).contains("s3://bucket/prefix"));
        assert!(refused("ftp://host/x", &[]).contains("unknown scheme \"ftp\""));
        assert!(refused("s3://bucket/a//b", &[]).contains("no path"));
        assert!(refused("/dev/null/store", &[]).contains("/dev/null/store"));
    }

    #[test]
    fn http_is_for_this_machine_or_by_consent() {
        let endpoint = |value| ("AWS_ENDPOINT_URL", value);
        assert!(refused("s3://b/p", &[endpoint("http://10.1.2.3:9000")]).contains("AWS_ALLOW_HTTP=true"));
        assert!(refused("s3://b/p", &[endpoint("http://127.0.0.1.example.org")]).contains("AWS_ALLOW_HTTP=true"));
        for vars in [
            vec![endpoint("http://127.0.0.1:9000")],
            vec![endpoint("http://localhost/s3")],
            vec![endpoint("http://[::1]:9000")],
            vec![endpoint("https://10.1.2.3:9000")],
            vec![endpoint("http://10.1.2.3:9000"), ("AWS_ALLOW_HTTP", "TRUE")],
        ] {
            let vars = vars.into_iter().map(|(name, value)| (name.to_string(), value.to_string()));
            assert!(open("s3://b/p", vars, true).is_ok());
        }
    }
}
