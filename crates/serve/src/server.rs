//! Connections: accepting, encrypting, bounding, and ending them well.
//!
//! A stranger's connection costs a task and a buffer, and only so many are accepted. The head of a request must come within a
//! time, the body too, and whoever takes nothing of what is written to them for a time is cut off. When the server is
//! stopped it accepts no more, lets running requests end within the grace, and then ends them.

use crate::options::{Options, Tls};
use crate::routes::{App, router};
use crate::served::{Models, Served, ServedError};
use axum::Router;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tower::ServiceExt;

/// Threads that serve sockets: they wait mostly, the model does the work.
const THREADS: usize = 2;
/// Threads that encode prompts and run templates.
const BLOCKING: usize = 4;
/// How often it is looked whether the server is to stop.
const LOOK: Duration = Duration::from_millis(50);
/// A pause after the system had nothing to give for a connection.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the beginning of an encrypted connection may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most bytes of a request's head.
const HEAD: usize = 64 << 10;

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The models.
    #[error(transparent)]
    Models(#[from] ServedError),
    /// The address.
    #[error("cannot listen at {address}: is something else there already?")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The certificate or its key.
    #[error("cannot use {}: {reason}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The operating system gave no threads.
    #[error("cannot start the server's threads")]
    Threads(#[source] io::Error),
}

/// Serves until `stop` is set; `started` hears at which address.
pub fn run(
    models: Vec<Served>,
    options: Options,
    stop: &AtomicBool,
    started: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime =
        builder.worker_threads(THREADS).max_blocking_threads(BLOCKING).thread_name("server").enable_all().build();
    let runtime = runtime.map_err(ServeError::Threads)?;
    let app = App::new(options, Models::new(models)?);
    let left = runtime.block_on(serve(app.clone(), stop, started))?;
    // What still runs is told that it is over, while there is somebody to pass it on.
    let engines: Vec<_> = app.models.iter().map(|model| model.engine.clone()).collect();
    engines.into_iter().for_each(|engine| engine.shutdown(left));
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// Accepts connections until `stop` is set, then waits for them; what is left of the grace.
async fn serve(app: Arc<App>, stop: &AtomicBool, started: impl FnOnce(SocketAddr)) -> Result<Duration, ServeError> {
    let options = &app.options;
    let tls = options.tls.as_ref().map(acceptor).transpose()?;
    let address = format!("{}:{}", options.host, options.port);
    let listen = |source| ServeError::Listen { address: address.clone(), source };
    let listener = TcpListener::bind((options.host.as_str(), options.port)).await.map_err(listen)?;
    started(listener.local_addr().map_err(listen)?);

    let router = router(app.clone());
    let room = Arc::new(Semaphore::new(options.max_connections.min(Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    let stopped = async {
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::pin!(stopped);
    loop {
        let next = async {
            let place = room.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = &mut stopped => break,
            next = next => next,
        };
        match accepted {
            Ok((stream, peer)) => {
                let watcher = graceful.watcher();
                let (router, tls, app) = (router.clone(), tls.clone(), app.clone());
                tokio::spawn(async move {
                    let _place = place;
                    let stream = limited(stream, &app.options);
                    match tls {
                        None => connection(stream, peer, router, &app.options, watcher).await,
                        Some(tls) => {
                            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                                connection(Box::pin(stream), peer, router, &app.options, watcher).await;
                            }
                        }
                    }
                });
            }
            // Too many files are open, or the client has left again: there is nothing to do but go on.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
    drop(listener);
    app.stopping.store(true, Ordering::Release);
    let start = Instant::now();
    let _ = tokio::time::timeout(options.grace, graceful.shutdown()).await;
    Ok(options.grace.saturating_sub(start.elapsed()))
}

/// A socket on which nobody waits for ever to be read.
fn limited(stream: TcpStream, options: &Options) -> std::pin::Pin<Box<TimeoutStream<TcpStream>>> {
    // Tokens are small and wanted at once.
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(options.write_timeout));
    Box::pin(stream)
}

/// Serves one connection to its end.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    router: Router,
    options: &Options,
    watcher: hyper_util::server::graceful::Watcher,
) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(options.header_timeout).max_buf_size(HEAD);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    // Whatever ended it early is the client's affair.
    let _ = watcher.watch(connection).await;
}

/// Reads a certificate and its key.
fn acceptor(tls: &Tls) -> Result<TlsAcceptor, ServeError> {
    let wrong = |path: &PathBuf, reason: String| ServeError::Tls { path: path.clone(), reason };
    let certificates: Vec<CertificateDer> = CertificateDer::pem_file_iter(&tls.cert)
        .and_then(Iterator::collect)
        .map_err(|error| wrong(&tls.cert, error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong(&tls.cert, "it holds no certificate in PEM".into()));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key).map_err(|error| wrong(&tls.key, error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(certificates, key))
        .map_err(|error| wrong(&tls.cert, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
