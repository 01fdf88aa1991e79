//! Engines, compilation, and the cache of compiled code on disk.
//!
//! There are two engines. Components that use no part of the asynchronous component model (every
//! `wasi:http@0.2` handler) run on one whose stores have no event loop, which is cheaper by the call;
//! all others run on the one that has it. Which one a component needs is told by validation.
//!
//! Compiled code is machine code: loading a forged file would be the end of the sandbox. So each
//! cached file carries a code that only this data directory's key can make, and a file whose code
//! does not fit is compiled anew.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use wasmtime::component::Component;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::limits::{BACKTRACE_FRAMES_MAX, GUEST_STACK_BYTES_MAX, HostLimits};
use crate::name::Digest;
use crate::runtime::ticks;

/// The engines of this process and the compiled code on its disk.
pub struct Engines {
    plain: Engine,
    concurrent: Engine,
    cache: CodeCache,
}

/// Which of the two engines a component runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Concurrent,
}

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("prepare the WebAssembly engine: {0:#}")]
    Engine(wasmtime::Error),
    #[error("start the thread that ticks the engine's clock")]
    Ticker(#[source] io::Error),
    #[error("open the cache of compiled code `{}`", path.display())]
    Cache { path: PathBuf, source: io::Error },
}

#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(
        "this is a core WebAssembly module, not a component; build with `--target wasm32-wasip2`, or wrap it by `wasm-tools component new`"
    )]
    CoreModule,
    #[error(
        "this is not WebAssembly: it does not start with `\\0asm`; is `component` in service.toml the right file?"
    )]
    NotWasm,
    #[error("the component is not valid: {0}")]
    Invalid(String),
    #[error("compile the component: {0:#}")]
    Compile(wasmtime::Error),
    #[error("keep the compiled code in `{}`", path.display())]
    Store { path: PathBuf, source: io::Error },
}

impl Engines {
    /// # Errors
    /// When the machine refuses the address space, or the data directory is not writable.
    pub fn new(limits: &HostLimits, data_dir: &Path) -> Result<Self, EngineError> {
        let plain = Engine::new(&config(limits, Kind::Plain)).map_err(EngineError::Engine)?;
        let concurrent = Engine::new(&config(limits, Kind::Concurrent)).map_err(EngineError::Engine)?;
        ticks::start(vec![plain.weak(), concurrent.weak()]).map_err(EngineError::Ticker)?;
        let path = data_dir.join("compiled");
        let cache = CodeCache::open(path.clone()).map_err(|source| EngineError::Cache { path, source })?;
        Ok(Self { plain, concurrent, cache })
    }

    pub fn get(&self, kind: Kind) -> &Engine {
        match kind {
            Kind::Plain => &self.plain,
            Kind::Concurrent => &self.concurrent,
        }
    }

    /// Says which engine a component needs, or why it is none.
    ///
    /// # Errors
    /// When the bytes are not a valid component.
    pub fn inspect(&self, bytes: &[u8]) -> Result<Kind, CompileError> {
        if !bytes.starts_with(b"\0asm") {
            return Err(CompileError::NotWasm);
        }
        if wasmparser::Parser::is_core_wasm(bytes) {
            return Err(CompileError::CoreModule);
        }
        let all = wasmparser::WasmFeatures::default() | wasmparser::WasmFeatures::CM_ASYNC;
        let plain = all.difference(wasmparser::WasmFeatures::CM_ASYNC);
        if wasmparser::Validator::new_with_features(plain).validate_all(bytes).is_ok() {
            return Ok(Kind::Plain);
        }
        match wasmparser::Validator::new_with_features(all).validate_all(bytes) {
            Ok(_) => Ok(Kind::Concurrent),
            Err(error) => Err(CompileError::Invalid(error.to_string())),
        }
    }

    /// Loads the compiled code of a component, compiling it if the cache does not have it.
    ///
    /// Takes up to seconds of CPU: not for a thread that serves.
    ///
    /// # Errors
    /// When the component does not compile, or the cache cannot be written.
    pub fn load(&self, kind: Kind, digest: &Digest, bytes: &[u8]) -> Result<Component, CompileError> {
        let engine = self.get(kind);
        let path = self.cache.path(engine, kind, digest);
        if self.cache.is_ours(&path)
            && let Some(component) = deserialize(engine, &path)
        {
            return Ok(component);
        }
        let code = engine.precompile_component(bytes).map_err(CompileError::Compile)?;
        self.cache
            .write(&path, &code)
            .map_err(|source| CompileError::Store { path: path.clone(), source })?;
        deserialize(engine, &path)
            .ok_or_else(|| CompileError::Invalid("its compiled code cannot be read back".to_owned()))
    }

    /// Removes the compiled code of components that `is_kept` does not name, and of older engines.
    pub fn sweep(&self, is_kept: impl Fn(&str) -> bool) {
        let folders = [Kind::Plain, Kind::Concurrent].map(|kind| self.cache.folder(self.get(kind), kind));
        self.cache.sweep(&folders, is_kept);
    }
}

fn deserialize(engine: &Engine, path: &Path) -> Option<Component> {
    #[expect(
        unsafe_code,
        reason = "the file's authentication code was checked: this host wrote it for this engine"
    )]
    let component = unsafe { Component::deserialize_file(engine, path) };
    component.inspect_err(|error| tracing::info!(path = %path.display(), "compiled code is not usable, compiling anew: {error:#}")).ok()
}

fn config(limits: &HostLimits, kind: Kind) -> Config {
    let instances = limits.instances;
    let mut pool = PoolingAllocationConfig::new();
    // A component has one or two core instances with a memory, and a handful of small helpers.
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(8))
        .total_memories(instances.saturating_mul(2))
        .total_tables(instances.saturating_mul(8))
        .total_stacks(instances.saturating_mul(2))
        .max_core_instances_per_component(64)
        .max_memories_per_component(8)
        .max_tables_per_component(64)
        .table_elements(100_000)
        .max_memory_size(limits.memory_per_instance.as_usize())
        .linear_memory_keep_resident(128 << 10)
        .table_keep_resident(16 << 10)
        .async_stack_keep_resident(32 << 10)
        .max_unused_warm_slots(instances.min(256));
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK_BYTES_MAX)
        .async_stack_size(GUEST_STACK_BYTES_MAX * 2)
        .native_unwind_info(false)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(BACKTRACE_FRAMES_MAX))
        .wasm_component_model(true)
        .wasm_component_model_async(kind == Kind::Concurrent)
        .concurrency_support(kind == Kind::Concurrent);
    config
}

/// The folder of compiled code, and the key that marks files as ours.
struct CodeCache {
    folder: PathBuf,
    key: [u8; 32],
}

impl CodeCache {
    fn open(folder: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let key = read_or_make_key(&folder.join("key"))?;
        Ok(Self { folder, key })
    }

    fn folder(&self, engine: &Engine, kind: Kind) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let name = match kind {
            Kind::Plain => "plain",
            Kind::Concurrent => "concurrent",
        };
        self.folder.join(format!("{name}-{:016x}", hasher.finish()))
    }

    fn path(&self, engine: &Engine, kind: Kind, digest: &Digest) -> PathBuf {
        self.folder(engine, kind).join(format!("{}.cwasm", digest.as_str()))
    }

    fn code_of(&self, path: &Path, content: &[u8]) -> Option<Hmac<Sha256>> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).ok()?;
        // The name is part of it: one component's code must not be passed off as another's.
        mac.update(path.file_name()?.as_encoded_bytes());
        mac.update(path.parent()?.file_name()?.as_encoded_bytes());
        mac.update(content);
        Some(mac)
    }

    fn is_ours(&self, path: &Path) -> bool {
        let (Ok(content), Ok(code)) = (fs::read(path), fs::read(path.with_extension("mac"))) else {
            return false;
        };
        let ours = self.code_of(path, &content).is_some_and(|mac| mac.verify_slice(&code).is_ok());
        if !ours {
            tracing::warn!(path = %path.display(), "compiled code was not written by this host, compiling anew");
        }
        ours
    }

    fn write(&self, path: &Path, code: &[u8]) -> io::Result<()> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(folder)?;
        let mac = self.code_of(path, code).ok_or(io::ErrorKind::InvalidInput)?.finalize().into_bytes();
        // A crash between the two leaves a pair that does not fit, which is compiled anew.
        write_whole(folder, path, code)?;
        write_whole(folder, &path.with_extension("mac"), &mac)
    }

    fn sweep(&self, folders: &[PathBuf], is_kept: impl Fn(&str) -> bool) {
        for folder in fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if !folder.is_dir() {
                continue;
            }
            if !folders.contains(&folder) {
                // What cannot be removed now is tried again at the next start.
                let _ = fs::remove_dir_all(&folder);
                continue;
            }
            for file in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                let kept = file.file_stem().and_then(|stem| stem.to_str()).is_some_and(&is_kept);
                if !kept {
                    let _ = fs::remove_file(&file);
                }
            }
        }
    }
}

fn write_whole(folder: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_data()?;
    file.persist(path)?;
    Ok(())
}

fn read_or_make_key(path: &Path) -> io::Result<[u8; 32]> {
    if let Ok(key) = fs::read(path)
        && let Ok(key) = <[u8; 32]>::try_from(key)
    {
        return Ok(key);
    }
    let mut key = [0; 32];
    fs::File::open("/dev/urandom").and_then(|mut file| io::Read::read_exact(&mut file, &mut key))?;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(&key)?;
    file.sync_all()?;
    Ok(key)
}
