//! An authority behind the network, here one that answers from memory.

use std::sync::Mutex;
use std::time::SystemTime;

use super::*;
use crate::identity::issuer::{CaFiles, LocalCa};
use crate::identity::tls::provider;

/// Signs with an intermediate in a folder, or fails as told.
struct Scripted {
    folder: Mutex<PathBuf>,
    roots: Mutex<Vec<PathBuf>>,
    fail: Mutex<Option<AuthorityError>>,
    /// Answers with a certificate of this identity instead.
    other: Mutex<Option<SpiffeId>>,
    asked: AtomicU32,
}

impl Scripted {
    fn new(folder: &Folder) -> Arc<Self> {
        Arc::new(Self {
            folder: Mutex::new(folder.join("c1")),
            roots: Mutex::new(vec![folder.join("root-cert.pem")]),
            fail: Mutex::default(),
            other: Mutex::default(),
            asked: AtomicU32::new(0),
        })
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Authority for Scripted {
    fn name(&self) -> String {
        "the test's authority".into()
    }

    fn issue(&self, id: &SpiffeId, ttl: Duration) -> Issuing {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let result = match self.fail.lock().unwrap().clone() {
            Some(error) => Err(error),
            None => {
                let id = self.other.lock().unwrap().clone().unwrap_or_else(|| id.clone());
                let now = SystemTime::now();
                let files = CaFiles::read(&self.folder.lock().unwrap()).unwrap();
                let ca = LocalCa::new(&files, "cluster.local", &provider(), now).unwrap();
                let made = ca.issue(&id, ttl, now).unwrap();
                let mut bundle = TrustBundle::new();
                for path in self.roots.lock().unwrap().iter() {
                    bundle.add_file("cluster.local", path).unwrap();
                }
                let roots = bundle.roots("cluster.local").unwrap().to_vec();
                Ok(Issued { chain: made.chain, key: made.key, roots })
            }
        };
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            result
        })
    }
}

fn open(authority: &Arc<Scripted>, ttl: u64) -> Arc<CertificateStore> {
    let config = StoreConfig {
        source: CertificateSource::Authority,
        trust_domain: "cluster.local".into(),
        ttl: Duration::from_secs(ttl),
        revocation: None,
    };
    CertificateStore::with_authority(config, authority.clone()).unwrap()
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[test]
fn the_first_connection_waits_and_prefetched_ones_do_not() {
    let folder = authority("cluster.local", &["c1"]);
    let scripted = Scripted::new(&folder);
    let (web, api) = (id("cluster.local", "web"), id("cluster.local", "api"));
    run(async {
        let store = open(&scripted, 600);
        assert!(store.states().is_empty());
        tokio::spawn(store.clone().run());
        let got = store.credential(&web).await.unwrap();
        assert_eq!(peer_identity(got.chain()), Some(web.clone()));
        store.need([web.clone(), api.clone()]);
        until("prefetch", || store.states().iter().all(|entry| entry.state == State::Available)).await;
        assert_eq!(scripted.asked(), 2, "one request each, however often it is needed");
        store.credential(&api).await.unwrap();
        assert_eq!(scripted.asked(), 2);
        store.need([api.clone()]);
        assert_eq!(store.states().into_iter().map(|entry| entry.id).collect::<Vec<_>>(), [api]);
    });
}

#[test]
fn refusals_are_told_at_once_and_a_wrong_answer_is_one() {
    let folder = authority("cluster.local", &["c1"]);
    let scripted = Scripted::new(&folder);
    let web = id("cluster.local", "web");
    run(async {
        let store = open(&scripted, 600);
        tokio::spawn(store.clone().run());
        *scripted.fail.lock().unwrap() = Some(AuthorityError::Refused("no pod of that account".into()));
        let error = store.credential(&web).await.unwrap_err().to_string();
        assert!(error.contains("no pod of that account"), "{error}");
        let asked = scripted.asked();
        store.credential(&web).await.unwrap_err();
        assert_eq!(scripted.asked(), asked, "connections do not ask again during the pause");
        assert!(store.states()[0].state.to_string().contains("Unavailable: no pod"), "{:?}", store.states());

        *scripted.fail.lock().unwrap() = None;
        *scripted.other.lock().unwrap() = Some(id("cluster.local", "admin"));
        let error = store.credential(&id("cluster.local", "api")).await.unwrap_err().to_string();
        assert!(error.contains("sa/admin instead of"), "{error}");
        let error = store.credential(&id("elsewhere", "api")).await.unwrap_err().to_string();
        assert!(error.contains("another trust domain"), "{error}");
    });
}

#[test]
fn an_outage_is_waited_for_and_the_old_certificate_stays_meanwhile() {
    let folder = authority("cluster.local", &["c1"]);
    let scripted = Scripted::new(&folder);
    let (web, api) = (id("cluster.local", "web"), id("cluster.local", "api"));
    run(async {
        let store = open(&scripted, 6);
        tokio::spawn(store.clone().run());
        let first = store.credential(&web).await.unwrap();
        *scripted.fail.lock().unwrap() = Some(AuthorityError::Unreachable("connection refused".into()));
        until("a failed renewal", || store.states().iter().any(|entry| entry.state != State::Available)).await;
        let kept = store.credential(&web).await.unwrap();
        assert_eq!(kept.generation, first.generation, "the old one is used until it expires");
        let waiting = tokio::spawn({
            let (store, api) = (store.clone(), api.clone());
            async move { store.credential(&api).await.map(|credential| credential.id.clone()) }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiting.is_finished());
        *scripted.fail.lock().unwrap() = None;
        assert_eq!(waiting.await.unwrap().unwrap(), api);
        until("renewal", || store.held().iter().any(|held| held.id == web && held.generation > first.generation)).await;
    });
}

#[test]
fn roots_overlap_and_the_old_one_goes_after_the_life_of_a_certificate() {
    let (old, new) = (authority("cluster.local", &["c1"]), authority("cluster.local", &["c1"]));
    let scripted = Scripted::new(&old);
    let web = id("cluster.local", "web");
    run(async {
        let store = open(&scripted, 4);
        tokio::spawn(store.clone().run());
        let before = store.credential(&web).await.unwrap();
        let standing = before.standing(PeerRole::Client);
        let chain = before.chain().to_vec();
        let lost = tokio::spawn(async move { standing.lost(chain).await });
        // The authority changes at once, without naming both roots for a while.
        *scripted.folder.lock().unwrap() = new.join("c1");
        *scripted.roots.lock().unwrap() = vec![new.join("root-cert.pem")];
        until("renewal", || store.held()[0].generation > before.generation).await;
        let names = |count| move |store: &CertificateStore| store.roots_accepted() == count;
        assert!(names(2)(&store), "both are accepted");
        assert!(!lost.is_finished(), "what the old root signed lives on");
        until("the end of the old root", || names(1)(&store)).await;
        let why = tokio::time::timeout(Duration::from_secs(2), lost).await.unwrap().unwrap();
        assert!(why.contains("does not hold against the roots"), "{why}");
    });
}
